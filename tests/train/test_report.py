"""A report holds what its run folder holds, loads nothing, and comes out of half a run too."""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from xylem.data.errors import DataError
from xylem.data.languages import Language
from xylem.data.ledger import Ledger, LedgerEntry, integer_shares
from xylem.data.manifest import LanguageEntry, Manifest, Source
from xylem.data.shards import ShardSet
from xylem.train import report
from xylem.train.checkpoint_files import RunState, seal, state_json
from xylem.train.errors import UserError
from xylem.train.report import write_report
from xylem.train.report_charts import draw_charts, numbers, smoothing_window

HOSTILE = "</blockquote><script>alert(1)</script><img src=https://evil.example/x.png>"
FAMILY_OF = {
    "deu_Latn": "germanic", "nld_Latn": "germanic", "fin_Latn": "uralic",
    "arb_Arab": "afro_asiatic", "zho_Hans": "sino_tibetan", "tam_Taml": "dravidian",
}  # fmt: skip
SAMPLES = {
    "germanic": ("deu_Latn", "Die Sonne", " scheint\n\nauf das Haus."),
    "uralic": ("fin_Latn", "Suomessa", " [ei] >>> on talvi."),
    "afro_asiatic": ("arb_Arab", "كانت", " المدينة كبيرة."),
    "sino_tibetan": ("zho_Hans", "北京", "是中国的首都。"),
    "dravidian": ("tam_Taml", "தமிழ்", HOSTILE),
}
SECTIONS = ("summary", "curves", "heldout", "facts", "samples", "exports", "history", "setup")


@pytest.fixture(autouse=True, scope="module")
def languages() -> Iterator[None]:
    """Names without the three seconds that the real database takes to load."""
    known = {"arb_Arab": ("Standard Arabic", "العربية"), "deu_Latn": ("German", "Deutsch")}

    def language(code: str) -> Language:
        if code not in known:
            raise DataError(f"no {code}")
        name, endonym = known[code]
        return Language(code=code, name=name, endonym=endonym, iso639_3=code[:3],
                        script=code[4:], genealogy=())  # fmt: skip

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "language", language)
        yield


def train_row(step: int, codes: dict[str, str]) -> dict[str, Any]:
    def score(number: int) -> dict[str, float]:
        loss = 3 + number / 10 + 6 * math.exp(-step / 15) + 0.1 * math.sin(7 * step + number)
        return {"loss": loss, "bpb": loss / 2.5, "tokens": 100 + number}

    families = sorted(set(codes.values()))
    return {
        "kind": "train", "step": step, **score(0),
        "families": {name: score(i) for i, name in enumerate(families)},
        "languages": {code: score(i) for i, code in enumerate(codes) if (step + i) % 2},
        "learning_rate": 3e-4 * min(1, step / 10), "gradient_norm": 0.8 + 20 / step,
        "tokens_seen": step * 1000, "tokens_per_second": 41_200.0, "mfu": 0.43,
        "memory_gib": 1.5, "data_wait_share": 0.01, "step_seconds": 2.0, "eta_seconds": 0.0,
    }  # fmt: skip


def make_run(folder: Path, codes: dict[str, str] = FAMILY_OF, steps: int = 60) -> Path:
    for part in ("checkpoints/step-40", "checkpoints/step-60", "samples", "export/step-60/uralic"):
        (folder / part).mkdir(parents=True)
    start = {"kind": "start", "precision": "bf16", "processes": 2, "device": "cpu",
             "commit": "0123456789abcdef", "time": "2026-01-02T03:04:05+00:00"}  # fmt: skip
    rows: list[dict[str, Any]] = [{**start, "step": 0}, {**start, "step": 40}]
    for step in range(1, steps + 1):
        rows.append(train_row(step, codes))
        if step % 20 == 0:
            taken = {
                code: {"loss": 3.4, "bpb": 1.4 - step / 1000 + i / 10, "tokens": 5000}
                for i, code in enumerate(codes)
            }
            rows.append({"kind": "heldout", "step": step, "mean_bpb": 1.5, "languages": taken})
    lines = [json.dumps(row) for row in rows]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + '\n{"kind": "tr', encoding="utf-8")
    config = {
        "run": {"name": folder.name, "steps": steps},
        "model": {"vocab_size": 512, "hidden_size": 32, "heads": 4, "kv_heads": 2, "head_dim": 8,
                  "layer_plan": [{"repeat": 2, "trunk_width": 64, "expert_width": 16}]},
        "data": {"corpus": "nowhere", "prepared": str(folder / "no-prepared-folder")},
        "optim": {},
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    (folder / "plan.txt").write_text("processes │ 1, 4 micro-batch(es) each a step, bf16 │")
    write_json(folder / "environment.json", {
        "written": "2026-01-02T03:04:05+00:00", "command": ["xylem", "pretrain", "run.steps=60"],
        "python": "3.12.3", "versions": {"torch": "2.13.0"}, "machine": "Linux-x", "cpu_threads": 2,
        "cuda_device": None, "git_commit": "0123456789abcdef0123", "git_diff": "+<b>changed</b>",
    })  # fmt: skip
    scores: dict[str, Any] = {
        code: {"loss": 3.3, "bpb": 1.3 + i / 10, "tokens": 9000, "family": family}
        for i, (code, family) in enumerate(codes.items())
    }
    facts = {
        code: {
            "stated": {"accuracy": 0.75, "questions": 40, "chance": 0.25},
            "held_out": {"accuracy": 0.375, "questions": 8, "chance": 0.25},
        }
        for code in list(codes)[:-1]
    }
    evaluation = {"step": steps, "checkpoint": "step-60", "languages": scores, "facts": facts}
    write_json(folder / "evaluation.json", evaluation)
    for step in (20, 40, 60):
        text = "".join(
            f"[{family}, {code}] {prompt} >>> {text} {step}\n\n"
            for family, (code, prompt, text) in SAMPLES.items()
        )
        (folder / "samples" / f"step-{step}.txt").write_text(text, encoding="utf-8")
    (folder / "checkpoints" / "latest").write_text("step-60\n")
    members = {f: [c for c, of in codes.items() if of == f] for f in set(codes.values())}
    mixture = LedgerEntry(
        from_step=0,
        slots=4,
        families=integer_shares({family: len(of) for family, of in members.items()}),
        languages={family: integer_shares(dict.fromkeys(of, 1)) for family, of in members.items()},
        sources={code: integer_shares({code: 1}) for code in codes},
        manifest_hash="",
    )
    state = RunState(
        step=60,
        ledger=Ledger(seed=0, sequence_length=64, slot_sequences=2, entries=(mixture,)),
        stream={"cursors": dict.fromkeys(codes, 20)},
        order_fingerprint="", tokens_seen=60_000, seconds=120.0,
    )  # fmt: skip
    path = folder / "checkpoints" / "step-60" / "state.json"
    path.write_text(state_json(state))
    seal(path)
    check = {"name": "fp32_logits_text", "meaning": "largest difference", "value": 3e-6,
             "bound": 1e-4, "kind": "at_most", "passed": True}  # fmt: skip
    write_json(folder / "export" / "step-60" / "uralic" / "gate.json", {
        "passed": True, "family": "uralic", "real_tokens": 1024, "random_tokens": 1024,
        "logit_spread": 1.0, "other_family_difference": None,
        "checks": [check, {**check, "name": "bf16_kl", "value": "nan", "passed": False}],
    })  # fmt: skip
    return folder


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


class Page(HTMLParser):
    """Elements, text by section, and whether tags are closed in order."""

    VOID = frozenset({"meta", "link", "img", "br", "input"})

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.sections: dict[str, str] = {}
        self.open: list[str] = []
        self.section = ""
        self.feed(self.source)
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {key: value or "" for key, value in attrs}
        self.elements.append((tag, found))
        if tag == "section":
            self.section = found["id"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        before = self.sections.get(self.section, "")
        self.sections[self.section] = f"{before} {' '.join(data.split())}".strip()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return Page(write_report(make_run(tmp_path_factory.mktemp("runs") / "tiny run")))


def test_every_section_is_there_and_filled(page: Page) -> None:
    assert tuple(attrs["id"] for tag, attrs in page.elements if tag == "section") == SECTIONS
    for name in SECTIONS:
        assert len(page.sections[name]) > 40, name
    absent = [attrs for _, attrs in page.elements if attrs.get("class") == "missing"]
    assert len(absent) == 1
    assert "prepared folder is not at hand" in page.sections["heldout"]


def test_the_summary_says_the_run_in_words(page: Page) -> None:
    summary = page.sections["summary"]
    for told in (
        "60 of 60 steps over 60 k tokens", "6 languages of 5 families", "2 min of training",
        "1.550 bits per byte", "German (1.300)", "in bf16 on",
        "2 CPU threads", "0123456789ab", "with local changes",
    ):  # fmt: skip
        assert told in summary, told


def test_parameters_are_counted_without_the_prepared_folder(page: Page) -> None:
    embedding, expert = 512 * 32, 2 * 3 * 32 * 16
    trunk = 2 * (32 * 64 + 32 * 32 + 3 * 32 * 64 + 2 * 32 + 2 * 8) + 32
    total = embedding + trunk + 5 * expert
    told = page.sections["summary"]
    assert f"Its model has {total / 1000:.3g} k parameters" in told
    assert f"of which a token uses {(embedding + trunk + expert) / 1000:.3g} k:" in told


def test_nothing_is_loaded_from_outside(page: Page) -> None:
    for tag, attrs in page.elements:
        assert tag not in ("img", "link", "iframe", "object", "embed", "base", "audio", "video")
        for key, value in attrs.items():
            if key in ("src", "href", "xlink:href", "srcset", "action", "data", "poster"):
                assert value.startswith("#"), (tag, key, value)
            if "url(" in value:
                assert re.fullmatch(r"url\(#\w+\)", value), (tag, key, value)
    style = page.source[page.source.index("<style>") : page.source.index("</style>")]
    assert "@import" not in style and "url(" not in style
    script = page.source[page.source.rindex("<script>") :]
    assert not re.search(r"fetch|import|XMLHttpRequest|https?:", script)
    policy = next(a["content"] for t, a in page.elements if "http-equiv" in a)
    assert policy.startswith("default-src 'none'")


def test_a_hostile_sample_is_text(page: Page) -> None:
    assert HOSTILE in page.sections["samples"]
    assert [tag for tag, _ in page.elements].count("script") == 1


def test_a_hostile_file_is_text(tmp_path: Path) -> None:
    run = make_run(tmp_path / "<script>alert(1)<script>")
    write_json(run / "environment.json", {"machine": HOSTILE, "git_diff": HOSTILE})
    (run / "plan.txt").write_text(HOSTILE)
    scores = {HOSTILE: {"loss": 1.0, "bpb": 1.0, "tokens": 1, "family": HOSTILE}}
    write_json(run / "evaluation.json", {"step": HOSTILE, "languages": scores})
    with (run / "metrics.jsonl").open("a") as rows:
        row = train_row(61, FAMILY_OF)
        row["languages"][HOSTILE] = row["families"][HOSTILE] = {"loss": 1, "bpb": 1, "tokens": 1}
        rows.write("\n" + json.dumps(row) + "\n")
    page = Page(write_report(run))
    assert [tag for tag, _ in page.elements].count("script") == 1
    assert [tag for tag, _ in page.elements].count("img") == 0
    assert page.source.count("&lt;script&gt;") > 5


def test_text_of_any_direction_is_shown_in_its_own(page: Page) -> None:
    quotes = [attrs for tag, attrs in page.elements if tag == "blockquote"]
    assert len(quotes) == 3 * len(SAMPLES)
    assert all(attrs["dir"] == "auto" for attrs in quotes)
    assert {attrs["lang"] for attrs in quotes} >= {"arb-Arab", "zho-Hans", "tam-Taml"}
    assert "المدينة كبيرة" in page.sections["samples"]
    assert "العربية" in page.sections["heldout"]


def test_samples_keep_their_line_breaks_and_the_newest_is_first(page: Page) -> None:
    assert "<b>Die Sonne</b> scheint\n\nauf das Haus. 60</blockquote>" in page.source
    assert "<b>Suomessa</b> [ei] &gt;&gt;&gt; on talvi. 60</blockquote>" in page.source
    samples = page.sections["samples"]
    assert samples.index("scheint auf das Haus. 60") < samples.index("scheint auf das Haus. 40")


def test_there_is_a_chart_of_everything_measured(page: Page) -> None:
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", page.source)
    assert len(captions) == 8 + 5 + 6 == page.source.count("<svg")
    assert "German <code>deu_Latn</code>" in captions and "uralic" in captions
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    known = set(ids)
    used = re.findall(r'(?:xlink:href="|url\()#(\w+)', page.source)
    assert used and set(used) <= known


def test_charts_have_the_colours_of_the_page_only(page: Page) -> None:
    drawn = "".join(re.findall(r"<svg.*?</svg>", page.source, re.S))
    assert "var(--train)" in drawn and "var(--heldout)" in drawn and "var(--muted)" in drawn
    assert not re.search(r"#[0-9a-fA-F]{6}", drawn)


def test_bits_per_byte_are_those_of_evaluate_and_pooled_in_training(page: Page) -> None:
    row = re.search(r"<tr><td>German</td><td><bdi.*?</tr>", page.source, re.S)
    assert row
    cells = re.findall(r"<td.*?>(?:<\w+[^>]*>)*(.*?)(?:</\w+>)*</td>", row[0])
    assert cells[:4] == ["German", "Deutsch", "deu_Latn", "germanic"]
    assert cells[5] == "1,280"
    recent = [train_row(step, FAMILY_OF)["languages"]["deu_Latn"] for step in (55, 57, 59)]
    assert cells[7] == f"{sum(r['loss'] for r in recent) / 3 / 2.5:.3f}"
    assert row[0].count("1.300") == 1
    assert "xylem evaluate at step 60" in page.sections["heldout"]


@pytest.mark.usefixtures("no_charts")
def test_tokens_held_and_epochs_come_from_the_prepared_folder(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    shards = ShardSet(table="a.jsonl", sha256="", shards=1, bytes=1, documents=1, tokens=641,
                      text_bytes=1)  # fmt: skip
    entries = {
        code: LanguageEntry(
            code=code,
            family=family,
            sources=(Source(name=code, language=code, languages=(code,), shards=shards),),
            heldout=replace(shards, table="", shards=0, documents=0, tokens=0),
        )
        for code, family in FAMILY_OF.items()
    }
    (run / "no-prepared-folder").mkdir()
    Manifest(
        tokenizer_sha256="", vocab_size=512, bos_id=2, eos_id=3, languages=entries, seed=0,
        families=tuple(sorted(set(FAMILY_OF.values()))),
    ).save(run / "no-prepared-folder")  # fmt: skip
    page = Page(write_report(run))
    assert "deu_Latn germanic 641 1,280 2.00" in page.sections["heldout"]
    assert "not at hand" not in page.sections["heldout"]


@pytest.mark.usefixtures("no_charts")
def test_heldout_numbers_of_training_stand_in_until_evaluate_has_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "evaluation.json").unlink()
    page = Page(write_report(run))
    assert "taken while training, at step 60" in page.sections["heldout"]
    assert "1.340" in page.sections["heldout"]


@pytest.mark.usefixtures("no_charts")
def test_facts_are_weighted_by_questions(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    evaluation = json.loads((run / "evaluation.json").read_text())
    evaluation["facts"] = {
        "deu_Latn": {"stated": {"accuracy": 1.0, "questions": 30, "chance": 0.25}},
        "nld_Latn": {"stated": {"accuracy": 0.5, "questions": 10, "chance": 0.5}},
    }
    write_json(run / "evaluation.json", evaluation)
    facts = Page(write_report(run)).sections["facts"]
    assert "all languages 88% 40 31% – – –" in facts
    assert "germanic 88% 40 31%" in facts
    assert "nld_Latn nld_Latn germanic 50% 10 50% – – –" in facts


def test_gates_show_each_check_and_a_failure(page: Page) -> None:
    exports = page.sections["exports"]
    assert "step-60 / uralic: passed" in exports
    assert "fp32_logits_text 3e-06 ≤ 0.0001 passed largest difference" in exports
    assert "bf16_kl nan ≤ 0.0001 failed" in exports


def test_the_history_says_whether_rows_are_contiguous(tmp_path: Path, page: Page) -> None:
    history = page.sections["history"]
    assert "60 training rows, from step 1 to 60, one a step, none missing" in history
    assert "step 40" in history and "step 60" in history and "newest" in history
    assert "2026-01-02 03:04:05 UTC 40 2 cpu bf16 0123456789ab" in history
    run = make_run(tmp_path / "run")
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join(lines[:7] + lines[10:]))
    history = Page(write_report(run)).sections["history"]
    assert "not contiguous : after step 5 comes 9." in history


def test_rows_further_apart_than_a_step_are_contiguous_too() -> None:
    assert report._contiguity([{"step": s} for s in (10, 20, 30, 33)]) == {
        "first": 10, "last": 33, "count": 4, "every": 10, "breaks": [],
    }  # fmt: skip
    again = report._contiguity([{"step": s} for s in (1, 2, 3, 3, 4)])
    assert again is not None and again["breaks"] == [(3, 3)]


PARTS = ("metrics.jsonl", "config.yaml", "plan.txt", "environment.json", "evaluation.json",
         "samples", "checkpoints", "export")  # fmt: skip


@pytest.fixture
def no_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of words: drawing is what takes long."""
    monkeypatch.setattr(report, "draw_charts", lambda *rows: {})


@pytest.mark.usefixtures("no_charts")
@pytest.mark.parametrize("part", PARTS)
def test_a_missing_part_is_told_and_costs_nothing_else(tmp_path: Path, part: str) -> None:
    run = make_run(tmp_path / "run")
    (run / part).rename(tmp_path / "gone")
    page = Page(write_report(run))
    told = "".join(page.sections.values())
    assert {
        "metrics.jsonl": "No metrics yet", "config.yaml": "config.yaml is missing",
        "plan.txt": "plan.txt is missing", "environment.json": "environment.json is missing",
        "evaluation.json": "No fact questions", "samples": "No samples",
        "checkpoints": "No checkpoint", "export": "No exports",
    }[part] in told  # fmt: skip
    assert "could not be read" not in told
    assert "step 60" in told


@pytest.mark.usefixtures("no_charts")
@pytest.mark.parametrize("part", [part for part in PARTS if "." in part])
@pytest.mark.parametrize("damage", ["{", "[1, 2]", '{"languages": 3, "facts": 4, "run": 5}'])
def test_a_damaged_part_is_told_and_costs_nothing_else(
    tmp_path: Path, part: str, damage: str
) -> None:
    run = make_run(tmp_path / "run")
    (run / part).write_text(damage)
    page = Page(write_report(run))
    assert "step 60" in page.sections["history"]
    assert "الم" in page.sections["samples"]
    known = {"metrics.jsonl", "plan.txt"}
    if part not in known and not (part == "environment.json" and damage.startswith('{"')):
        assert re.search(r"part[s]? of this report could not be read", page.sections["summary"])


def test_a_run_of_one_file_has_a_report(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(json.dumps(train_row(1, FAMILY_OF)))
    page = Page(write_report(tmp_path))
    assert "The run has made 1 steps" in page.sections["summary"].replace("1 step ", "1 steps ")
    assert sum(attrs.get("class") == "missing" for _, attrs in page.elements) >= 7


def test_numbers_that_are_none_are_left_out() -> None:
    rows = [{"step": i, "loss": v} for i, v in enumerate((1.0, math.nan, None, math.inf, 2))]
    assert numbers(rows, "loss") == ([0.0, 4.0], [1.0, 2.0])
    assert draw_charts(rows, [], {})["loss"][1] is not None
    assert draw_charts(rows, [], {})["mfu"][1] is None


def test_a_long_run_is_drawn_with_its_extremes() -> None:
    rows = [{"step": i, "loss": 2.0} for i in range(20_000)]
    rows[777]["loss"] = 9.0
    drawn = draw_charts(rows, [], {})["loss"][1]
    assert len(drawn) < 30_000
    assert ">9<" in drawn or ">8<" in drawn
    assert smoothing_window(20_000) == 501 and smoothing_window(3) == 1


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"neither config\.yaml nor metrics\.jsonl"):
        write_report(tmp_path / "nowhere")
    assert not list(tmp_path.iterdir())


def test_the_template_is_packaged() -> None:
    root = Path(__file__).resolve().parents[2]
    assert re.search(r'"xylem\.train": \[[^\]]*"\*\.html"', (root / "setup.py").read_text())
