"""The report's pictures of routing: there with token routers only, true to the rows, escaped."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from xylem.train import report
from xylem.train.report import write_report
from xylem.train.report_routing import draw_routing, heat_map

from .test_report import FAMILY_OF, HOSTILE, SECTIONS, Page, make_run, train_row

FAMILIES = sorted(set(FAMILY_OF.values()))
GROUPS = [*([name, 2] for name in FAMILIES), ["", 1]]
LAYERS = ("layer_0", "layer_3")


def routing_scalars(step: int) -> dict[str, Any]:
    keys = ("entropy", "max_vio", "max_vio_uniform", "languages_per_expert",
            "experts_without_tokens", "gate")  # fmt: skip
    row: dict[str, Any] = {key: dict.fromkeys(LAYERS, 1 + 1 / step) for key in keys}
    return {**row, "dropped": 0, "head_accuracy": 0.5}


def tables(step: int, families: list[str] = FAMILIES, groups: Any = GROUPS) -> dict[str, Any]:
    """Every family sends half of its choices to its own two experts, half to the shared one."""
    load = {
        name: [0.25 * (e // 2 == i) for e in range(2 * len(families))] + [0.5]
        for i, name in enumerate(families)
    }
    codes = sorted(FAMILY_OF)
    values = [0.4, 0.0, 0.1, 0.2, 0.3]
    divergence = {LAYERS[0]: [*values, None], LAYERS[1]: [*values, 0.2]}
    told = {"divergence": dict.fromkeys(LAYERS, 0.2)}
    return {
        "kind": "routing", "step": step, "steps": 20,
        "batch": {
            "languages": codes, "tokens": [100] * 6, "groups": groups,
            "load": dict.fromkeys(LAYERS, load),
            "entropy": dict.fromkeys(LAYERS, [1.0] * 6),
            "gate": dict.fromkeys(LAYERS, [0.75] * 6),
        },
        "parallel": {
            "pivot": "deu_Latn", "languages": codes, "sentences": 16, "tokens": [50] * 6,
            "with_tag": {**told, "by_language": {"divergence": divergence}},
            "without_tag": {**told, "by_language": {"divergence": divergence}},
        },
    }  # fmt: skip


def make_routed_run(folder: Path) -> Path:
    run = make_run(folder)
    rows = [train_row(step, FAMILY_OF) | {"routing": routing_scalars(step)} for step in (20, 40)]
    lines = [json.dumps(row) for row in [*rows, tables(20), tables(40)]]
    (run / "metrics.jsonl").write_text("\n".join(lines))
    return run


@pytest.fixture(autouse=True, scope="module")
def words_alone() -> Iterator[None]:
    """Without the names of languages and the curves of losses, which take seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "_names", lambda code: (code, ""))
        patch.setattr(report, "draw_charts", lambda *rows: {})
        yield


@pytest.fixture(scope="module")
def page(words_alone: None, tmp_path_factory: pytest.TempPathFactory) -> Page:
    return Page(write_report(make_routed_run(tmp_path_factory.mktemp("runs") / "run")))


def test_the_section_stands_after_the_bits_per_byte(page: Page) -> None:
    found = tuple(attrs["id"] for tag, attrs in page.elements if tag == "section")
    at = SECTIONS.index("facts")
    assert found == (*SECTIONS[:at], "routing", *SECTIONS[at:])
    assert ("a", {"href": "#routing"}) in page.elements
    told = page.sections["routing"]
    assert "routed from deu_Latn on the same 16 sentences, at step 40" in told
    assert "over 20 steps up to step 40" in told
    assert "1.025 1.02 1.02 1 1 1.025" in told
    assert "0 choices were dropped" in told


def test_the_heat_map_has_a_tinted_cell_for_each_language_layer_and_tag(page: Page) -> None:
    start = page.source.index("<h3>Where languages part")
    table = page.source[start : page.source.index("</table>", start)]
    rows = dict(re.findall(r'<th scope="row">(\w+)[^<]*</th>(.*?)</tr>', table))
    assert sorted(rows) == sorted(FAMILY_OF)
    cells = {
        code: re.findall(r"<td(?: style=\"--part:([\d.]+)\" title=\"[\d.]+\")?>(.*?)</td>", row)
        for code, row in rows.items()
    }
    assert cells["arb_Arab"] == [("1.000", "0.40")] * 4
    assert cells["deu_Latn"] == [("0.000", "0.00")] * 4
    assert cells["zho_Hans"] == [("", "–"), ("0.500", "0.20")] * 2
    assert re.findall(r'rowspan="2">(\w+)<', table) == ["germanic"]
    assert table.count("with tag") == 1 and table.count("without tag") == 1


def test_loads_and_flows_are_those_of_the_row(page: Page) -> None:
    start = page.source.index('<section id="routing">')
    section = page.source[start : page.source.index("</section>", start)]
    drawings = re.findall(r"<svg.*?</svg>", section, re.S)
    flows, loads = drawings[:2], drawings[2:4]
    for drawing in flows:
        assert re.findall(r"var\(--(\w+)\)\" fill-opacity", drawing) == ["muted", "train"]
        assert drawing.count("C") == 2 * 2 * len(FAMILIES)
        assert drawing.count(">shared<") == 1 and drawing.count(">uralic<") == 2
    for drawing in loads:
        tints = {
            tint: path.count("z")
            for tint, path in re.findall(r'fill-opacity="([\d.]+)" d="(.*?)"', drawing)
        }
        assert tints == {"0.50": 2 * len(FAMILIES), "1.00": len(FAMILIES)}
    colours = set(re.findall(r'(?:fill|stroke)="([^"]+)"', "".join(flows + loads)))
    assert colours <= {"none", *(f"var(--{n})" for n in ("ink", "muted", "grid", "train"))}


def test_a_family_whose_choices_go_elsewhere_is_seen_in_the_flow() -> None:
    row = tables(20)
    for load in row["batch"]["load"].values():
        load["uralic"] = [0.5, 0.5] + [0.0] * 9
    told = [train_row(20, FAMILY_OF) | {"routing": routing_scalars(20)}]
    flow = draw_routing(told, [row], FAMILY_OF)["flows"][0][1]
    foreign = re.search(r'var\(--heldout\)" fill-opacity=".45" d="(.*?)"', flow)
    assert foreign and foreign[1].count("z") == 1


def test_a_model_without_token_routers_has_no_section(tmp_path: Path) -> None:
    assert draw_routing([train_row(1, FAMILY_OF)], [], FAMILY_OF) == {}
    assert heat_map([("", {"layer_0": [None]})], ["deu_Latn"], FAMILY_OF) is None


def test_gates_alone_have_their_own_words(tmp_path: Path) -> None:
    row = train_row(20, FAMILY_OF) | {"routing": {"gate": {"layer_1": 0.7}}}
    table: dict[str, Any] = tables(20)
    del table["parallel"]
    table["batch"] = {"languages": sorted(FAMILY_OF), "gate": {"layer_1": [0.5] * 6}}
    (tmp_path / "metrics.jsonl").write_text(f"{json.dumps(row)}\n{json.dumps(table)}")
    told = Page(write_report(tmp_path)).sections
    assert "How much the experts weigh beside the trunk" in told["routing"]
    assert "MaxVio," not in told["routing"] and "dropped" not in told["routing"]
    assert told["routing"].count("0.50") == 6 + 2  # cells, and the bounds of the tints
    assert "could not be read" not in told["summary"]


def test_a_run_without_tables_yet_has_its_curves(tmp_path: Path) -> None:
    rows = [train_row(step, FAMILY_OF) | {"routing": routing_scalars(step)} for step in (1, 2)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    page = Page(write_report(tmp_path))
    assert "Entropy of the router" in page.sections["routing"]
    assert "Where languages part" not in page.sections["routing"]
    assert "could not be read" not in page.sections["summary"]


def test_hostile_names_are_text() -> None:
    row = tables(20, [HOSTILE[:18]], [[HOSTILE[:18], 2], ["", 1]])
    told = [train_row(20, FAMILY_OF) | {"routing": routing_scalars(20)}]
    drawn = draw_routing(told, [row], FAMILY_OF)
    for _, svg in [*drawn["flows"], *drawn["loads"]]:
        assert "</blockquote><" not in svg and "&lt;/blockquote&gt;&lt;" in svg


def test_many_columns_are_drawn_without_numbers() -> None:
    layers = {f"layer_{n}": [0.5] for n in range(19)}
    wide = heat_map([("", layers)], ["deu_Latn"], FAMILY_OF)
    assert wide is not None and not wide["numbered"]
    assert wide["blocks"] == [("", list(range(19)))]
