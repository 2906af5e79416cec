"""A trained run, exported, and opened by its real clients: transformers, ctranslate2, lm_eval."""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from xylem.data.config import DataConfig, TokenizerConfig
from xylem.data.prepare import prepare
from xylem.data.shards import write_table
from xylem.data.tokenizer import Tokenizer
from xylem.model.config import LayerPlan, ModelConfig
from xylem.model.errors import ModelError
from xylem.model.hf.gate_report import GateFailure
from xylem.scripts import generate, lm_eval_facts
from xylem.train import export
from xylem.train.compose import to_yaml
from xylem.train.config import EngineConfig, RunConfig, RunSettings
from xylem.train.errors import UserError
from xylem.train.export import ExportResult, export_run
from xylem.train.loop import pretrain
from xylem.train.optimizer import OptimConfig
from xylem.train.run_folder import open_run

WORDS = {
    "fin_Latn": "talo järvi metsä vene kala yö päivä lumi jää tie on ja tai joka vanha uusi suuri",
    "deu_Latn": "Haus See Wald Boot Fisch Nacht Tag Schnee Eis Weg ist und oder der alt neu groß",
    "nld_Latn": "huis meer bos boot vis nacht dag sneeuw ijs weg is en of de oud nieuw groot",
    "khk_Cyrl": "гэр нуур ой завь загас шөнө өдөр цас мөс зам бол ба эсвэл хуучин шинэ том",
}
FAMILIES = {
    "germanic": ("deu_Latn", "nld_Latn"),
    "mongolic_khitan": ("khk_Cyrl",),
    "uralic": ("fin_Latn",),
}
STEPS = 40


def write_corpus(folder: Path) -> None:
    """Sentences of a language's words, in which each word prefers the next of the list."""
    folder.mkdir()
    for code, words in WORDS.items():
        rng, known = random.Random(code), words.split()
        with (folder / f"{code}.jsonl").open("w", encoding="utf-8") as file:
            for number in range(120):
                at, said = rng.randrange(len(known)), []
                for _ in range(rng.randrange(20, 40)):
                    said.append(known[at])
                    at = (at + (1 if rng.random() < 0.7 else rng.randrange(9))) % len(known)
                text = " ".join(said) + "."
                file.write(json.dumps({"id": str(number), "text": text}) + "\n")


def write_facts(path: Path) -> None:
    """Questions that the corpus answers: which word follows which."""
    with path.open("w", encoding="utf-8") as file:
        for code, words in WORDS.items():
            known = words.split()
            for i in range(8):
                choices = [f" {known[(i + 2 + ahead) % len(known)]}" for ahead in range(4)]
                fact = {
                    "fact": f"next/{i}",
                    "kind": "next",
                    "language": code,
                    "held_out": i % 2 == 1,
                    "prompt": f"{known[i]} {known[i + 1]}",
                    "answer": choices[0],
                    "choices": choices[i % 4 :] + choices[: i % 4],
                    "label": -i % 4,
                }
                file.write(json.dumps(fact, ensure_ascii=False) + "\n")


@dataclass(frozen=True)
class Trained:
    """A run of 40 steps and what it was exported to."""

    run: Path
    results: dict[str, ExportResult]
    facts: Path
    out: str
    """What the export printed."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    root = tmp_path_factory.mktemp("run")
    write_corpus(root / "corpus")
    write_facts(root / "facts.jsonl")
    data = DataConfig(
        corpus=str(root / "corpus"),
        prepared=str(root / "prepared"),
        heldout_share=0.1,
        sequence_length=64,
        slot_sequences=4,
        slots_per_step=4,
        tokenizer=TokenizerConfig(vocab_size=420, sample_bytes=60_000),
    )
    prepare(data)
    model = ModelConfig(
        vocab_size=420,
        hidden_size=64,
        heads=4,
        kv_heads=2,
        head_dim=16,
        layer_plan=(
            LayerPlan(trunk_width=96, expert_width=48),
            LayerPlan(trunk_width=128),
            LayerPlan(trunk_width=80, expert_width=32),
        ),
    )
    config = RunConfig(
        run=RunSettings(name="tiny", root=str(root / "runs"), steps=STEPS),
        model=model,
        data=data,
        optim=OptimConfig(learning_rate=4e-3, warmup_steps=5),
        engine=EngineConfig(precision="fp32", threads=1, peak_tflops=1.0),
    )
    threads = torch.get_num_threads()
    pretrain(config)
    torch.set_num_threads(threads)
    run = root / "runs" / "tiny"
    bits = {code: {"bpb": 1.25, "loss": 1.0} for code in WORDS}
    (run / "evaluation.json").write_text(json.dumps({"step": STEPS, "languages": bits}))
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "say", said.append)
        results = {result.family: result for result in export_run(run)}
    return Trained(run, results, root / "facts.jsonl", "\n".join(said))


def test_every_family_is_exported_through_the_gate(trained: Trained) -> None:
    assert {family: result.languages for family, result in trained.results.items()} == FAMILIES
    for family, result in trained.results.items():
        assert result.folder == trained.run / "export" / f"step-{STEPS}" / family
        assert {path.name for path in result.folder.iterdir()} == {
            "README.md", "config.json", "gate.json", "generation_config.json", "model.safetensors",
            "prompts.json", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json",
        }  # fmt: skip
        stored = json.loads((result.folder / "gate.json").read_text())
        assert stored == result.gate.to_json() and stored["passed"]
        assert stored["real_tokens"] >= 512
        assert stored["checks"][-1]["name"] == "tokenizer"
        count = "2 languages" if family == "germanic" else "1 language"
        assert f"export {family}: {count}, gate passed" in trained.out
    assert len(list((trained.run / "export" / f"step-{STEPS}").iterdir())) == 3


def test_config_and_card_say_where_the_model_comes_from(trained: Trained) -> None:
    folder = trained.results["uralic"].folder
    origin = json.loads((folder / "config.json").read_text())["xylem"]
    opened = open_run(trained.run)
    sealed = opened.checkpoint / "family-uralic.safetensors.sha256"
    assert origin["checkpoint_sha256"]["family-uralic.safetensors"] == sealed.read_text().strip()
    assert origin["manifest_hash"] == opened.manifest.hash
    assert (origin["family"], origin["step"], origin["run"]) == ("uralic", STEPS, "tiny")
    card = (folder / "README.md").read_text(encoding="utf-8")
    for value in (origin["weights_sha256"], origin["config_sha256"], origin["manifest_hash"]):
        assert value in card
    # Nothing of this machine, so that equal runs give equal folders.
    assert str(trained.run.parent) not in card + json.dumps(origin)


def test_card_has_front_matter_languages_and_measurements(trained: Trained) -> None:
    card = (trained.results["germanic"].folder / "README.md").read_text(encoding="utf-8")
    _, front, body = card.split("---\n", 2)
    fields = yaml.safe_load(front)
    assert fields["language"] == ["deu", "nld"]
    assert fields["library_name"] == "transformers" and "xylem" in fields["tags"]
    assert "Deutsch" in body and "Nederlands" in body
    assert "| 1.250 |" in body
    assert "| fp32_logits_text |" in body and "**no**" not in body
    assert "not been instruction-tuned" in body


def test_bits_of_another_step_are_not_shown(trained: Trained) -> None:
    opened = open_run(trained.run)
    assert export.bits_per_byte(opened) == dict.fromkeys(WORDS, 1.25)
    path = trained.run / "evaluation.json"
    before = path.read_text()
    try:
        path.write_text(json.dumps(json.loads(before) | {"step": STEPS - 1}))
        assert export.bits_per_byte(opened) == {}
    finally:
        path.write_text(before)


def test_prompts_are_beginnings_of_real_documents(trained: Trained) -> None:
    stored = json.loads((trained.results["germanic"].folder / "prompts.json").read_text("utf-8"))
    assert stored["family"] == "germanic"
    assert [each["language"] for each in stored["prompts"]] == ["deu_Latn", "nld_Latn"]
    for each in stored["prompts"]:
        assert 1 < len(each["prompt"]) <= export.PROMPT_CHARACTERS
        assert set(each["prompt"].split()) <= set(WORDS[each["language"]].split())


def test_tokenizer_of_the_folder_is_the_runs(trained: Trained) -> None:
    from transformers import AutoTokenizer

    ours: Tokenizer = open_run(trained.run).tokenizer
    theirs = AutoTokenizer.from_pretrained(trained.results["mongolic_khitan"].folder)
    for text in ("гэр нуур", "Straße ist 3 groß", " <s> 汉"):
        assert theirs(text).input_ids == [ours.bos_id, *ours.encode(text)]
    assert theirs.model_max_length == 64


def test_two_exports_of_a_run_are_equal(trained: Trained, tmp_path: Path) -> None:
    (again,) = export_run(trained.run, step=STEPS, families=["uralic"], out=tmp_path)
    first = trained.results["uralic"].folder
    for path in first.iterdir():
        assert path.read_bytes() == (again.folder / path.name).read_bytes(), path.name


def test_unknown_family_and_step_are_refused(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'bantu' is not in this run: choose from germanic"):
        export_run(trained.run, families=["uralic", "bantu"], out=tmp_path)
    with pytest.raises(UserError, match="'urlaic' is not in this run: did you mean uralic"):
        export_run(trained.run, families=["urlaic"], out=tmp_path)
    with pytest.raises(UserError, match="step 3"):
        export_run(trained.run, step=3, out=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_foreign_folder_in_the_way_is_refused(trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "uralic").mkdir()
    (tmp_path / "uralic" / "thesis.tex").write_text("")
    with pytest.raises(ModelError, match="no export of Xylem"):
        export_run(trained.run, families=["uralic"], out=tmp_path)
    assert [path.name for path in (tmp_path / "uralic").iterdir()] == ["thesis.tex"]


def test_a_failing_gate_leaves_no_folder(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest: Callable[..., int] = export.write_model

    def wrong_family(decoder: Any, family: str, folder: Path, **rest: Any) -> int:
        return honest(decoder, "germanic", folder, **rest)

    monkeypatch.setattr(export, "write_model", wrong_family)
    with pytest.raises(GateFailure, match=r"uralic.*fp32_logits_text is .*at most"):
        export_run(trained.run, families=["uralic"], out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["uralic.gate-failed.json"]
    stored = json.loads((tmp_path / "uralic.gate-failed.json").read_text())
    assert not stored["passed"]
    monkeypatch.undo()
    export_run(trained.run, families=["uralic"], out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["uralic"]


def test_a_wrong_tokenizer_fails_the_gate(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest: Callable[..., None] = export.export_hf_tokenizer

    def without_a_merge(tokenizer: Tokenizer, folder: Path, **rest: Any) -> None:
        honest(tokenizer, folder, **rest)
        path = folder / "tokenizer.json"
        content = json.loads(path.read_text(encoding="utf-8"))
        del content["model"]["merges"][:10]
        path.write_text(json.dumps(content), encoding="utf-8")

    monkeypatch.setattr(export, "export_hf_tokenizer", without_a_merge)
    with pytest.raises(GateFailure, match=r"tokenizer is \d+, at most 0"):
        export_run(trained.run, families=["uralic"], out=tmp_path)
    assert not (tmp_path / "uralic").exists()


def test_gate_documents_are_of_every_language_and_topped_up_from_training(
    trained: Trained,
) -> None:
    opened = open_run(trained.run)
    prepared = Path(opened.config.data.prepared)
    entries = [opened.manifest.languages[code] for code in FAMILIES["germanic"]]
    documents = export.gate_documents(prepared, entries)
    assert sum(map(len, documents)) >= 512
    texts = [set(opened.tokenizer.decode(each).strip(".").split()) for each in documents[:2]]
    assert texts[0] & set(WORDS["deu_Latn"].split()) and texts[1] & set(WORDS["nld_Latn"].split())
    (uralic,) = (opened.manifest.languages[code] for code in FAMILIES["uralic"])
    for heldout in (write_table(Path(), "", ()), uralic.heldout):
        entry = replace(uralic, heldout=heldout)
        assert sum(map(len, export.gate_documents(prepared, [entry]))) >= 1024


def test_generate_prints_a_line_a_folder(
    trained: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    root = trained.run / "export" / f"step-{STEPS}"
    generate.main([str(root), "--tokens", "6"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "germanic deu_Latn", "mongolic_khitan khk_Cyrl", "uralic fin_Latn"
    ]  # fmt: skip
    generate.main([str(root / "germanic"), "--tokens", "6", "--every-language"])
    assert len(capsys.readouterr().out.splitlines()) == 2
    generate.main([str(root / "uralic"), "--tokens", "9", "--prompt", "talo järvi"])
    line = capsys.readouterr().out
    assert line.startswith("uralic: «talo järvi» greedy:")
    written = line.split("greedy:")[1].split("│")[0].split()
    # The words of the corpus follow each other in their order: metsä follows järvi.
    assert written[0] == "metsä"


def test_sampling_is_repeatable_and_differs_by_seed(trained: Trained) -> None:
    folder = trained.results["uralic"].folder
    first, again, other = (
        generate.continuations(folder, [("", "talo")], tokens=12, temperature=2.0, seed=seed)
        for seed in (1, 1, 2)
    )
    assert first == again
    assert first[0].greedy == other[0].greedy and first[0].sampled != other[0].sampled


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["{tmp}"], "is no exported model and holds none"),
        (["{model}", "--tokens", "0"], "tokens must be at least 1"),
        (["{model}", "--prompt", ""], "--prompt is empty"),
    ],
)
def test_generate_refuses_mistakes_in_one_line(
    arguments: list[str],
    told: str,
    trained: Trained,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = {"tmp": tmp_path, "model": trained.results["uralic"].folder}
    with pytest.raises(SystemExit) as ended:
        generate.main([argument.format(**names) for argument in arguments])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("generate: ") and told in line


def test_ctranslate2_loads_an_export_and_agrees(trained: Trained, tmp_path: Path) -> None:
    ctranslate2 = pytest.importorskip("ctranslate2", reason="an independent engine, of xylem[test]")
    from ctranslate2.converters import TransformersConverter
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = trained.results["mongolic_khitan"].folder
    TransformersConverter(str(folder)).convert(str(tmp_path / "ct2"), quantization="float32")
    engine = ctranslate2.Generator(str(tmp_path / "ct2"), device="cpu", compute_type="float32")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = tokenizer(WORDS["khk_Cyrl"]).input_ids[:60]
    with torch.no_grad():
        theirs = model(torch.tensor([ids])).logits[0].numpy()
    ours = np.asarray(engine.forward_batch([ids], return_log_probs=False))[0]
    assert ours.shape == theirs.shape == (len(ids), 420)
    assert theirs.std() > 0.5, "logits without spread would agree whatever the engine does"
    assert np.abs(ours - theirs).max() <= 1e-3
    begin = tokenizer.convert_ids_to_tokens(ids[:5])
    (made,) = engine.generate_batch(
        [begin], max_length=8, sampling_topk=1, include_prompt_in_result=False
    )
    with torch.no_grad():
        expected = model.generate(torch.tensor([ids[:5]]), max_new_tokens=8)[0, 5:].tolist()
    end = tokenizer.eos_token_id
    assert made.sequences_ids[0] == [token for token in expected if token != end]


def test_lm_eval_asks_facts_of_an_export(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("lm_eval", reason="the evaluation harness, of xylem[test]")
    folder = trained.results["germanic"].folder
    lm_eval_facts.main([str(folder), "--facts", str(trained.facts), "--out", str(tmp_path)])
    rows = json.loads((tmp_path / "accuracies.json").read_text())
    assert [(row["language"], row["split"], row["questions"]) for row in rows] == [
        ("deu_Latn", "stated", 4), ("deu_Latn", "held_out", 4),
        ("nld_Latn", "stated", 4), ("nld_Latn", "held_out", 4),
        ("all", "stated", 8), ("all", "held_out", 8),
    ]  # fmt: skip
    assert all(row["chance"] == 0.25 for row in rows)
    # The corpus says which word follows which, and the run has learned it.
    assert rows[-1]["acc"] + rows[-2]["acc"] > 1.0
    shown = capsys.readouterr().out
    assert "held out" in shown and "25.0%" in shown


def test_lm_eval_tasks_keep_questions_apart_and_whole(trained: Trained, tmp_path: Path) -> None:
    facts = lm_eval_facts.read_facts(trained.facts)
    tasks = lm_eval_facts.write_tasks(facts, ["fin_Latn"], tmp_path, limit=3)
    assert [(task.split, task.questions) for task in tasks] == [("stated", 3), ("held_out", 3)]
    for task in tasks:
        lines = (tmp_path / f"{task.name}.jsonl").read_text(encoding="utf-8").splitlines()
        for line in map(json.loads, lines):
            (asked,) = [
                f for f in facts if f["prompt"] == line["prompt"] and f["language"] == "fin_Latn"
            ]
            assert asked["held_out"] == (task.split == "held_out")
            assert line["choices"][line["label"]] == asked["answer"]
        written = yaml.safe_load((tmp_path / f"{task.name}.yaml").read_text())
        assert written["task"] == task.name and written["target_delimiter"] == ""


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["{tmp}", "--facts", "{facts}"], "is no exported model"),
        (["{model}", "--facts", "{tmp}/none.jsonl"], "does not exist"),
        (["{model}", "--facts", "{facts}", "--languages", "swh_Latn"], "no question in swh_Latn"),
        (["{model}", "--facts", "{facts}", "--limit", "0"], "--limit 0 must be at least 1"),
    ],
)
def test_lm_eval_facts_refuses_mistakes_in_one_line(
    arguments: list[str],
    told: str,
    trained: Trained,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = {"tmp": tmp_path, "model": trained.results["uralic"].folder, "facts": trained.facts}
    given = [argument.format(**names) for argument in arguments]
    with pytest.raises(SystemExit) as ended:
        lm_eval_facts.main([*given, "--out", str(tmp_path / "out")])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("lm_eval_facts: ") and told in line


def test_a_failing_lm_eval_tells_its_log(
    trained: Trained,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lm_eval_facts.sys, "executable", "/bin/ls")
    folder = trained.results["uralic"].folder
    with pytest.raises(SystemExit) as ended:
        lm_eval_facts.main([str(folder), "--facts", str(trained.facts), "--out", str(tmp_path)])
    assert ended.value.code == 1
    assert "lm_eval ended with code 2" in capsys.readouterr().err
    assert not (tmp_path / "accuracies.json").exists()


def test_config_hash_is_that_of_the_runs_config(trained: Trained) -> None:
    opened = open_run(trained.run)
    origin = export.provenance(opened, "uralic")
    assert origin["config_sha256"] == export._sha256(to_yaml(opened.config))
