"""The loop in one process: what a run writes, and that it learns."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from xylem.model.attention_backends import BACKENDS, Case, choose
from xylem.train.compose import compose_config
from xylem.train.errors import UserError
from xylem.train.loop import pretrain
from xylem.train.metrics import read_metrics
from xylem.train.run_folder import open_run

from ..conftest import Prepared, run_settings, train_losses


def test_a_run_folder_holds_what_is_needed_to_audit_it(prepared: Prepared, tmp_path: Path) -> None:
    more = ("run.steps=4", "logging.samples_every=2", "logging.sample_tokens=5",
            "evaluation.every=2", "checkpoint.every=2")  # fmt: skip
    pretrain(compose_config(run_settings(prepared, tmp_path, "run", *more)))
    run = tmp_path / "run"
    for name in ("config.yaml", "plan.txt", "environment.json", "metrics.jsonl"):
        assert (run / name).stat().st_size > 0, name
    assert {"versions", "git_commit", "git_diff"} <= json.loads(
        (run / "environment.json").read_text()
    ).keys()
    row = read_metrics(run, "train")[-1]
    assert row["loss"] > 0 and row["tokens_seen"] == 4 * 4 * 2 * 32
    assert {"tokens_per_second", "mfu", "memory_gib", "data_wait_share", "eta_seconds"} <= set(row)
    # The whole's loss is the token-weighted mean of the languages', and of the families'.
    for part in ("languages", "families"):
        tokens = sum(value["tokens"] for value in row[part].values())
        mean = sum(value["loss"] * value["tokens"] for value in row[part].values()) / tokens
        assert mean == pytest.approx(row["loss"])
    assert [r["step"] for r in read_metrics(run, "heldout")] == [2, 4]
    assert len(read_metrics(run, "start")) == 1
    samples = (run / "samples" / "step-4.txt").read_text(encoding="utf-8")
    assert ">>>" in samples and "rus_Cyrl" in samples


def test_one_batch_again_and_again_is_learnt_by_heart(prepared: Prepared, tmp_path: Path) -> None:
    more = ("debug=overfit", "run.steps=60", "optim.learning_rate=0.01", "optim.warmup_steps=5")
    pretrain(compose_config(run_settings(prepared, tmp_path, "run", *more)))
    losses = train_losses(tmp_path / "run")
    assert losses[-1] < 0.25 * losses[0]


def test_bf16_learns_as_fp32_does(prepared: Prepared, tmp_path: Path) -> None:
    for precision in ("fp32", "bf16"):
        settings = run_settings(prepared, tmp_path, precision, "run.steps=15")
        pretrain(compose_config([*settings, f"engine.precision={precision}"]))
    fp32, bf16 = train_losses(tmp_path / "fp32"), train_losses(tmp_path / "bf16")
    assert bf16 == pytest.approx(fp32, rel=0.01) and bf16 != fp32


def test_tensorboard_and_wandb_offline_write_their_files(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard", reason="the extra `tensorboard` is not installed")
    pytest.importorskip("wandb", reason="the extra `wandb` is not installed")
    for variable in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / "wandb-home"))
    more = ("run.steps=2", "logging.tensorboard=true", "logging.wandb=offline")
    pretrain(compose_config(run_settings(prepared, tmp_path, "run", *more)))
    assert list((tmp_path / "run" / "tensorboard").glob("events.*"))
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*"))


def test_a_missing_logging_package_says_which_extra(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    settings = run_settings(prepared, tmp_path, "run", "run.steps=1", "logging.wandb=offline")
    with pytest.raises(UserError, match=r"pip install 'xylem\[wandb\]'"):
        pretrain(compose_config(settings))


def test_rows_that_a_crash_undid_are_told_once(prepared: Prepared, tmp_path: Path) -> None:
    settings = run_settings(prepared, tmp_path, "run", "run.steps=6", "checkpoint.every=3")
    pretrain(compose_config(settings))
    run = tmp_path / "run"
    before = train_losses(run)
    (run / "checkpoints" / "latest").write_text("step-3\n")  # as if step 6 had never been saved
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')  # a line cut by the crash
    pretrain(compose_config(settings))
    assert train_losses(run) == before
    assert [row["step"] for row in read_metrics(run, "start")] == [0, 3]


def test_a_backend_of_half_precision_serves_the_whole_run_and_is_not_asked_for_after(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Samples and evaluation run in the run's precision; what reads it later takes what it can."""

    def refusal(case: Case) -> str | None:
        return None if case.dtype == torch.bfloat16 else "computes in bfloat16 only"

    monkeypatch.setitem(BACKENDS, "reference", replace(BACKENDS["reference"], refusal=refusal))
    choose.cache_clear()
    more = ("run.steps=2", "engine.precision=bf16", "model.attention=reference",
            "logging.samples_every=1", "logging.sample_tokens=2", "evaluation.every=1")  # fmt: skip
    pretrain(compose_config(run_settings(prepared, tmp_path, "run", *more)))
    choose.cache_clear()
    assert open_run(tmp_path / "run").decoder.config.attention == "auto"
