"""Embeddings of families from a run: means of its own hidden states, in a file that fits."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from xylem.data.token_line import TokenLine
from xylem.model.routers import FamilySegment
from xylem.scripts.domain_embeddings import main
from xylem.train.compose import compose_config
from xylem.train.evaluation import evaluation_rows
from xylem.train.loop import pretrain
from xylem.train.run_folder import open_run

from ..conftest import Prepared, run_settings


def write(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["domain_embeddings", *map(str, arguments)])
    main()


def test_a_runs_embeddings_begin_a_run_of_domain_routers(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretrain(compose_config(run_settings(prepared, tmp_path, "first", "run.steps=2")))
    file = tmp_path / "out" / "rows.safetensors"
    write(monkeypatch, tmp_path / "first", file, "--tokens", 200)
    rows = load_file(file)
    opened = open_run(tmp_path / "first")
    assert set(rows) == {*opened.manifest.families, "shared"}
    for row in rows.values():
        assert row.shape == (64,) and row.norm().item() == pytest.approx(1, abs=1e-5)
    # One language's family, token by token.
    entry = opened.manifest.languages["tam_Taml"]
    line = TokenLine(opened.storage, entry.sources[0].shards)
    states = []
    for inputs, _, documents in evaluation_rows(line, 32, 0, 200):
        held = int((documents >= 0).sum())
        hidden = opened.decoder(
            torch.from_numpy(inputs[:held])[None], torch.from_numpy(documents[:held])[None],
            (FamilySegment(entry.family, 0, 1),),
        )  # fmt: skip
        states.append(hidden[0])
    mean = torch.cat(states).mean(0)
    torch.testing.assert_close(rows[entry.family], mean / mean.norm(), atol=1e-5, rtol=1e-4)
    expert = "{trunk_width:48,expert_width:16,router:domain}"
    settings = (f"model.layer_plan=[{expert}]", f"model.routing.domain_rows={file}", "run.steps=1",
                "optim.learning_rate=0", "model.routing.shared_experts=1")  # fmt: skip
    pretrain(compose_config(run_settings(prepared, tmp_path, "second", *settings)))
    trunk = load_file(tmp_path / "second" / "checkpoints" / "step-1" / "trunk.safetensors")
    weight = trunk["layers.0.feed_forward.router.shared.weight"]
    assert torch.equal(weight, rows["shared"][None])


def test_a_folder_that_is_no_run_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        write(monkeypatch, tmp_path, tmp_path / "rows.safetensors")
    assert ended.value.code == 2
    assert "is no run folder" in capsys.readouterr().err
