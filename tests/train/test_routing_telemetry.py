"""Telemetry of routers: its sums are what happened, whatever the processes, and it is written."""

import json
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from xylem.model.config import LayerPlan, ModelConfig, RoutingConfig
from xylem.model.decoder import Decoder, DecoderExtras, Layer, build_decoder
from xylem.model.divergence import entropy, routing_divergence
from xylem.model.routers import FamilySegment, TokenChoice, TokenRouter
from xylem.train.compose import compose_config
from xylem.train.config import EngineConfig, LoggingConfig
from xylem.train.engines.processes import Processes
from xylem.train.errors import UserError
from xylem.train.loop import pretrain
from xylem.train.metrics import _scalars, read_metrics
from xylem.train.parallel_sentences import ParallelSentences, choose_sentences, segments_of
from xylem.train.routing_telemetry import (
    TOKENS,
    RoutingSums,
    batch_scalars,
    batch_tables,
    languages_covering,
    max_violation,
    parallel_tables,
)

from ..conftest import ALPHABETS, Command, Prepared, run_settings

FAMILIES = ("alpha", "beta", "gamma")
CODES = ("aaa_Latn", "aab_Latn", "bbb_Latn", "ccc_Latn")
FAMILY_OF = dict(zip(CODES, ("alpha", "alpha", "beta", "gamma"), strict=True))
FAMILIES_L = torch.tensor([0, 0, 1, 2])
ROUTED = (
    "{trunk_width:48,expert_width:16,router:prior}",
    "{trunk_width:64}",
    "{trunk_width:48,expert_width:16,router:prior}",
)
PRIOR = (
    f"model.layer_plan=[{','.join(ROUTED)}]",
    "model.routing.experts_per_family=2",
    "model.routing.shared_experts=1",
)


def decoder_of(*routers: str, **routing: Any) -> Decoder:
    config = ModelConfig(
        vocab_size=97, hidden_size=32, heads=4, kv_heads=2, head_dim=8, init_std=0.2,
        layer_plan=tuple(
            LayerPlan(trunk_width=32, expert_width=16, router=router)  # type: ignore[arg-type]
            for router in routers
        ),
        routing=RoutingConfig(**{"shared_experts": 1, **routing}),
    )  # fmt: skip
    return build_decoder(config, FAMILIES, seed=1).eval()


def batch(rows: int = 6, positions: int = 9) -> tuple[Tensor, Tensor, list[FamilySegment]]:
    """Languages of the rows, tokens, segments; the third language has none."""
    generator = torch.Generator().manual_seed(0)
    languages_B = torch.tensor([0, 1, 1, 0, 3, 3])[:rows]
    tokens_BT = torch.randint(0, 97, (rows, positions), generator=generator)
    families = [FAMILY_OF[CODES[i]] for i in languages_B]
    return languages_B, tokens_BT, segments_of(families)


def run(decoder: Decoder, tokens_BT: Tensor, segments: Sequence[FamilySegment]) -> DecoderExtras:
    extras = DecoderExtras()
    with torch.no_grad():
        decoder(tokens_BT, torch.zeros_like(tokens_BT), segments, extras=extras)
    return extras


def test_sums_are_a_count_by_hand_over_every_token() -> None:
    decoder = decoder_of("prior", "topk", gate=True)
    seen: list[Tensor] = []

    def watch(_: object, __: object, choice: TokenChoice) -> None:
        seen.append(choice.experts_NK)

    for layer in decoder.layers:
        cast(TokenRouter, cast(Layer, layer).feed_forward.router).register_forward_hook(watch)
    languages_B, tokens_BT, segments = batch()
    B, T = tokens_BT.shape
    sums = RoutingSums(decoder, len(CODES), torch.device("cpu"))
    for _ in range(2):  # two micro-batches
        extras = run(decoder, tokens_BT, segments)
        sums.add(languages_B, sums.rows(extras, B, T))
    values = sums.values_LC
    scalars = batch_scalars(sums, values, FAMILIES_L)
    tables = batch_tables(sums, values, CODES, FAMILY_OF)
    assert tables["tokens"] == [2 * 2 * T, 2 * 2 * T, 0, 2 * 2 * T]
    assert tables["groups"] == [("alpha", 2), ("beta", 2), ("gamma", 2), ("", 1)]
    for number, experts_NK in enumerate(seen[:2]):
        name = f"layer_{number}"
        counts: Counter[tuple[str, int]] = Counter()
        for token, chosen in enumerate(experts_NK.tolist()):
            code = CODES[int(languages_B[token // T])]
            for expert in chosen:
                counts[code, expert] += 2
        load = [sum(counts[code, e] for code in CODES) for e in range(7)]
        assert sum(load) == 2 * B * T * 2
        uniform = max(load) / (sum(load) / 7) - 1
        assert scalars["max_vio_uniform"][name] == pytest.approx(uniform)
        # The target of an expert: its family's tokens, spread alike over its own and the shared.
        target = [2 * 4 * T * 2 / 3] * 2 + [0.0] * 2 + [2 * 2 * T * 2 / 3] * 2
        target.append(2 * 6 * T * 2 / 3)
        worst = max(n / t for n, t in zip(load, target, strict=True) if t) - 1
        assert scalars["max_vio"][name] == pytest.approx(worst)
        assert scalars["experts_without_tokens"][name] == load.count(0)
        for family in ("alpha", "gamma"):
            of = [sum(counts[c, e] for c in CODES if FAMILY_OF[c] == family) for e in range(7)]
            shares = [n / sum(of) for n in of]
            assert tables["load"][name][family] == pytest.approx(shares, rel=1e-4)
        reaching = [sum(counts[code, e] > 0 for code in CODES) for e in range(7)]
        assert tables["languages_reaching"][name] == reaching
        covering = []
        for e in range(7):
            held, needed = 0, 0
            for n in sorted((counts[code, e] for code in CODES), reverse=True):
                needed += held < 0.8 * load[e]
                held += n
            covering.append(needed)
        assert tables["languages_covering"][name] == covering
        middle = statistics.median_low([n for n in covering if n])
        assert scalars["languages_per_expert"][name] == middle
        left = extras.layers[number]
        assert left.statistics is not None and left.gate_B is not None
        mean = float(left.statistics.entropy_B.sum()) / (B * T)
        assert scalars["entropy"][name] == pytest.approx(mean)
        assert scalars["gate"][name] == pytest.approx(float(left.gate_B.sum()) / (B * T))
        mine = left.gate_B[languages_B == 3].sum() / (2 * T)
        assert tables["gate"][name][2:] == [None, pytest.approx(float(mine), rel=1e-4)]
    assert scalars["dropped"] == 0
    assert extras.head_right is not None
    right = float(extras.head_right.sum()) / (B * T)
    assert scalars["head_accuracy"] == pytest.approx(right)


def test_a_choice_that_is_missing_is_told_as_dropped() -> None:
    decoder = decoder_of("topk")
    languages_B, tokens_BT, segments = batch()
    sums = RoutingSums(decoder, len(CODES), torch.device("cpu"))
    sums.add(languages_B, sums.rows(run(decoder, tokens_BT, segments), *tokens_BT.shape))
    values = sums.values_LC.clone()
    first = next(iter(sums.layers.values()))
    values[3, int(values[3, first.experts].argmax()) + first.experts.start] -= 3
    assert batch_scalars(sums, values, FAMILIES_L)["dropped"] == 3


def test_a_family_router_with_a_gate_tells_its_gate_alone() -> None:
    decoder = decoder_of("family", gate=True, shared_experts=0)
    languages_B, tokens_BT, segments = batch()
    sums = RoutingSums(decoder, len(CODES), torch.device("cpu"))
    sums.add(languages_B, sums.rows(run(decoder, tokens_BT, segments), *tokens_BT.shape))
    scalars = batch_scalars(sums, sums.values_LC, FAMILIES_L)
    assert set(scalars) == {"gate"} and 0 < scalars["gate"]["layer_0"] < 1
    tables = batch_tables(sums, sums.values_LC, CODES, FAMILY_OF)
    assert set(tables) == {"languages", "tokens", "gate"}
    told = parallel_tables(decoder, Processes(EngineConfig()), sentences_of(LENGTHS), 4)
    assert set(told["with_tag"]) == {"by_language", "gate"} and "without_tag" not in told


def test_the_sums_of_two_halves_are_those_of_the_whole() -> None:
    decoder = decoder_of("prior", "prior", gate=True)
    languages_B, tokens_BT, _ = batch()
    whole, halves = (RoutingSums(decoder, len(CODES), torch.device("cpu")) for _ in range(2))
    for sums, cuts in ((whole, [(0, 6)]), (halves, [(0, 3), (3, 6)])):
        for start, stop in cuts:
            part_B, part_BT = languages_B[start:stop], tokens_BT[start:stop]
            segments = segments_of([FAMILY_OF[CODES[i]] for i in part_B])
            sums.add(part_B, sums.rows(run(decoder, part_BT, segments), *part_BT.shape))
    assert torch.allclose(whole.values_LC, halves.values_LC, rtol=1e-5)
    exact = [TOKENS, *(c for x in whole.layers.values() for c in range(x.experts.start, x.entropy))]
    assert torch.equal(whole.values_LC[:, exact], halves.values_LC[:, exact])


def test_max_violation_is_0_at_the_target_and_leaves_out_what_should_have_none() -> None:
    assert max_violation(torch.tensor([6.0, 2.0]), torch.tensor([0.75, 0.25])) == 0
    assert max_violation(torch.tensor([4.0, 4.0]), torch.tensor([3.0, 1.0])) == pytest.approx(1)
    assert max_violation(torch.tensor([5.0, 5.0, 0.0]), torch.tensor([1.0, 1.0, 0.0])) == 0


def test_languages_are_counted_until_they_make_up_four_fifths() -> None:
    choices_LE = torch.tensor([[80, 79, 25, 0], [20, 21, 25, 0], [0, 0, 25, 0], [0, 0, 25, 0]])
    assert languages_covering(choices_LE.double()).tolist() == [1, 2, 4, 0]


# Parallel sentences


def sentences_of(lengths: Sequence[Sequence[int]]) -> ParallelSentences:
    generator = torch.Generator().manual_seed(3)
    return ParallelSentences(
        pivot="bbb_Latn", languages=CODES, families=tuple(FAMILY_OF[c] for c in CODES),
        ids=("one", "two"),
        tokens=tuple(
            tuple(
                tuple(torch.randint(0, 97, (n,), generator=generator).tolist()) for n in language
            )
            for language in lengths
        ),
    )  # fmt: skip


LENGTHS = ((5, 7), (5, 5), (9, 7), (4, 5))


def test_batches_hold_every_sentence_once_without_padding() -> None:
    sentences = sentences_of(LENGTHS)
    held: dict[int, list[int]] = {}
    for index_B, tokens_BT, segments in sentences.batches(2, tagged=True):
        assert len(index_B) == len(tokens_BT) <= 2
        families = [s.family for s in segments for _ in range(s.start, s.stop)]
        assert families == [sentences.families[int(i) // 2] for i in index_B]
        held |= dict(zip(index_B.tolist(), tokens_BT.tolist(), strict=True))
    assert held == {
        2 * i + j: list(row)
        for i, language in enumerate(sentences.tokens)
        for j, row in enumerate(language)
    }
    untagged = sentences.batches(99, tagged=False)
    assert {s.family for _, _, segments in untagged for s in segments} == {""}


@pytest.mark.parametrize("tagged", [True, False])
def test_divergence_is_that_of_each_sentence_run_alone(tagged: bool) -> None:
    decoder = decoder_of("prior", "prior")
    sentences = sentences_of(LENGTHS)
    table = parallel_tables(decoder, Processes(EngineConfig()), sentences, 3)
    found = table["with_tag" if tagged else "without_tag"]
    q: dict[tuple[int, int, int], Tensor] = {}
    for i, language in enumerate(sentences.tokens):
        for j, row in enumerate(language):
            family = sentences.families[i] if tagged else ""
            extras = run(decoder, torch.tensor([row]), [FamilySegment(family, 0, 1)])
            for number, left in extras.layers.items():
                assert left.statistics is not None
                q[number, i, j] = left.statistics.probabilities_BE[0].double() / len(row)
                assert q[number, i, j].sum().item() == pytest.approx(1, abs=1e-5)
    for number in (0, 1):
        expected = [
            float(sum(routing_divergence(q[number, 2, j], q[number, i, j]) for j in (0, 1)) / 2)
            for i in range(4)
        ]
        name = f"layer_{number}"
        assert found["by_language"]["divergence"][name] == pytest.approx(expected, rel=1e-3)
        assert expected[2] == 0 and expected[0] > 0
        others = statistics.mean(expected[i] for i in (0, 1, 3))
        assert found["divergence"][name] == pytest.approx(others, rel=1e-3)
        # A sentence's mean entropy is at most the entropy of its mean.
        for i in range(4):
            most = max(float(entropy(q[number, i, j])) for j in (0, 1))
            assert 0 < found["by_language"]["entropy"][name][i] <= most + 1e-4


def test_the_model_trains_on_after_the_sentences() -> None:
    decoder = decoder_of("prior").train()
    parallel_tables(decoder, Processes(EngineConfig()), sentences_of(LENGTHS), 4)
    assert decoder.training


def test_a_strong_prior_parts_families_and_the_blind_router_takes_no_notice_of_tags() -> None:
    engine = Processes(EngineConfig())
    strong = decoder_of("prior", prior_strength=50.0, shared_experts=0)
    sentences = sentences_of(LENGTHS)
    told = parallel_tables(strong, engine, sentences, 4)
    # Two families' disjoint experts, two each, nearly evenly used: log 2 / log 3.
    assert told["with_tag"]["by_language"]["divergence"]["layer_0"][3] > 0.5
    blind = parallel_tables(decoder_of("topk"), engine, sentences, 4)
    assert "without_tag" not in blind
    mixed = decoder_of("family", "prior")  # a family router needs the tag
    assert "without_tag" not in parallel_tables(mixed, engine, sentences, 4)


TEXTS = {
    "aaa_Latn": {"1": "a", "2": "b", "3": "c"},
    "bbb_Latn": {"3": "z", "2": "y"},
    "ccc_Latn": {"9": "q", "3": "v"},
    "fff_Latn": {"1": "k", "2": "l"},
    "ggg_Latn": {"1": "k", "3": "l"},
}


def test_the_ids_are_those_that_all_languages_share() -> None:
    codes = ("aaa_Latn", "bbb_Latn", "ddd_Latn")
    chosen = choose_sentences(TEXTS, codes, "aaa_Latn", 16)
    assert chosen == (("aaa_Latn", "bbb_Latn"), ("2", "3"))
    assert choose_sentences(TEXTS, codes, "bbb_Latn", 1)[1] == ("3",)


def test_an_empty_sentence_is_none() -> None:
    texts = {**TEXTS, "bbb_Latn": {**TEXTS["bbb_Latn"], "3": "  "}}
    chosen = choose_sentences(texts, ("aaa_Latn", "bbb_Latn"), "bbb_Latn", 16)
    assert chosen == (("aaa_Latn", "bbb_Latn"), ("2",))


def test_a_language_with_few_of_the_sentences_does_not_take_them_from_all() -> None:
    chosen = choose_sentences(TEXTS, ("aaa_Latn", "bbb_Latn", "ccc_Latn"), "aaa_Latn", 16)
    assert chosen == (("aaa_Latn", "bbb_Latn"), ("2", "3"))


@pytest.mark.parametrize(
    ("codes", "pivot", "told"),
    [
        (CODES, "eng_Latn", "pivot=eng_Latn is no language of the run: set it to one of aaa_Latn"),
        (("bbb_Latn", "ddd_Latn"), "ddd_Latn", "pivot=ddd_Latn has no sentence in .*: set it to"),
        (("ddd_Latn", "eee_Latn"), "ddd_Latn", "has no language of the run: it has aaa_Latn"),
        (("bbb_Latn", "ddd_Latn"), "bbb_Latn", "no other language .* half of the 2 .*none has any"),
        (("aaa_Latn", "ccc_Latn"), "aaa_Latn", r"no other .* half of the 3 ids .*\(ccc_Latn 1\)"),
        (
            ("aaa_Latn", "bbb_Latn", "fff_Latn", "ggg_Latn"),
            "aaa_Latn",
            r"no id is shared by all 4 .*\(bbb_Latn has 2 of the 3 of aaa_Latn\)",
        ),
    ],
)
def test_sentences_that_do_not_fit_the_run_are_refused(
    codes: Sequence[str], pivot: str, told: str
) -> None:
    with pytest.raises(UserError, match=told) as caught:
        choose_sentences(TEXTS, codes, pivot, 16)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("setting", [{"pivot": "deu_Latn"}, {"parallel_limit": 4}])
def test_a_setting_of_parallel_sentences_without_a_file_is_refused(setting: Any) -> None:
    with pytest.raises(UserError, match=r"has no effect without logging\.parallel_sentences"):
        LoggingConfig(**setting)


# In a run


def write_sentences(path: Path, codes: Sequence[str] = tuple(ALPHABETS)) -> Path:
    with path.open("w", encoding="utf-8") as file:
        for code in codes:
            for number in range(3):
                text = " ".join([ALPHABETS[code][:5], ALPHABETS[code][3:7]] * (2 + number))
                row = {"lang": code, "id": f"s/{number}", "text": text}
                file.write(json.dumps(row) + "\n")
    return path


def test_a_run_writes_rows_and_tables_and_resumes_them(prepared: Prepared, tmp_path: Path) -> None:
    more = (
        *PRIOR, "run.steps=6", "checkpoint.every=3", "logging.routing_every=3",
        f"logging.parallel_sentences={write_sentences(tmp_path / 'p.jsonl')}",
        "logging.pivot=deu_Latn", "logging.parallel_limit=2",
    )  # fmt: skip
    settings = run_settings(prepared, tmp_path, "run", *more)
    pretrain(compose_config(settings))
    run_folder = tmp_path / "run"
    rows = [row["routing"] for row in read_metrics(run_folder, "train")]
    assert len(rows) == 6
    for row in rows:
        assert set(row["entropy"]) == set(row["max_vio"]) == {"layer_0", "layer_2"}
        assert row["dropped"] == 0 and 0 <= row["head_accuracy"] <= 1
    tables = read_metrics(run_folder, "routing")
    assert [(row["step"], row["steps"]) for row in tables] == [(3, 3), (6, 3)]
    for table in tables:
        assert sum(table["batch"]["tokens"]) == 3 * 4 * 2 * 32
        for shares in table["batch"]["load"]["layer_2"].values():
            assert len(shares) == 9 and sum(shares) == pytest.approx(1, abs=1e-3)
        parallel = table["parallel"]
        assert parallel["pivot"] == "deu_Latn" and parallel["sentences"] == 2
        for tag in ("with_tag", "without_tag"):
            values = parallel[tag]["by_language"]["divergence"]["layer_0"]
            assert len(values) == 5 and values[parallel["languages"].index("deu_Latn")] == 0
    sent = dict(_scalars("routing", tables[0]))
    assert "routing/parallel/with_tag/divergence/layer_0" in sent and len(sent) < 20
    (run_folder / "checkpoints" / "latest").write_text("step-3\n")  # a crash after step 3
    pretrain(compose_config(settings))
    assert [row["routing"] for row in read_metrics(run_folder, "train")] == rows
    again = read_metrics(run_folder, "routing")
    assert again == tables


def test_telemetry_changes_no_loss(prepared: Prepared, tmp_path: Path) -> None:
    more = (
        "run.steps=4", "logging.routing_every=1", "logging.pivot=deu_Latn",
        f"logging.parallel_sentences={write_sentences(tmp_path / 'p.jsonl')}",
    )  # fmt: skip
    for name, settings in (("plain", ("run.steps=4",)), ("told", more)):
        pretrain(compose_config(run_settings(prepared, tmp_path, name, *PRIOR, *settings)))
    losses = [
        [row["loss"] for row in read_metrics(tmp_path / name, "train")]
        for name in ("plain", "told")
    ]
    assert losses[0] == losses[1]


def test_a_model_of_family_routers_says_once_that_there_is_nothing_to_measure(
    prepared: Prepared, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_sentences(tmp_path / "p.jsonl")
    more = ("run.steps=2", f"logging.parallel_sentences={path}", "logging.pivot=deu_Latn")
    pretrain(compose_config(run_settings(prepared, tmp_path, "run", *more)))
    assert capsys.readouterr().out.count("finds nothing to measure") == 1
    assert not read_metrics(tmp_path / "run", "routing")
    assert all("routing" not in row for row in read_metrics(tmp_path / "run", "train"))


def test_a_missing_file_of_sentences_is_one_line(prepared: Prepared, tmp_path: Path) -> None:
    more = (*PRIOR, "run.steps=1", "logging.parallel_sentences=nowhere.jsonl")
    settings = run_settings(prepared, tmp_path, "run", *more, "logging.pivot=deu_Latn")
    with pytest.raises(ValueError, match=r"nowhere\.jsonl: no such file") as caught:
        pretrain(compose_config(settings))
    assert "\n" not in str(caught.value)


def test_two_processes_tell_what_one_tells(
    prepared: Prepared, xylem: Command, tmp_path: Path
) -> None:
    path = write_sentences(tmp_path / "p.jsonl")
    more = (
        *PRIOR, "run.steps=4", "logging.every=2", "logging.routing_every=4",
        "logging.pivot=deu_Latn", f"logging.parallel_sentences={path}",
    )  # fmt: skip
    told = {}
    for processes in (1, 2):
        settings = run_settings(prepared, tmp_path, f"of{processes}", *more)
        if processes == 1:
            pretrain(compose_config(settings))
        else:
            done = xylem("pretrain", *settings, processes=processes)
            assert done.returncode == 0, done.stderr
        folder = tmp_path / f"of{processes}"
        train, table = read_metrics(folder, "train"), read_metrics(folder, "routing")[0]
        told[processes] = [row["routing"] for row in train], table
    (rows, table), (rows_of_two, table_of_two) = told[1], told[2]
    assert table["batch"]["load"] == table_of_two["batch"]["load"]
    assert table["batch"]["tokens"] == table_of_two["batch"]["tokens"]
    one, two = dict(_scalars("", table)), dict(_scalars("", table_of_two))
    assert one == pytest.approx(two, rel=1e-3, abs=1e-7)
    for row, other in zip(rows, rows_of_two, strict=True):
        assert dict(_scalars("", row)) == pytest.approx(dict(_scalars("", other)), rel=1e-4)
