"""A running mixture is edited from a later step on; what was read can be told at any step."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from xylem.data.manifest import Manifest
from xylem.data.stream import first_ledger
from xylem.data.token_line import TokenLine
from xylem.train.compose import compose_config
from xylem.train.errors import UserError
from xylem.train.loop import pretrain
from xylem.train.run_folder import run_lock
from xylem.train.run_mixture import (
    build_mixture,
    decided_ledger,
    edit_mixture,
    read_ledger,
    source_shares,
    write_ledger,
)

from ..conftest import Prepared, train_losses, write_corpus


def settings(prepared: Prepared, root: Path, *more: str) -> list[str]:
    return [*prepared.settings, f"run.root={root}", "run.name=mixed", "model=debug",
            "model.vocab_size=400", "checkpoint.every=4", *more]  # fmt: skip


@pytest.fixture
def run(prepared: Prepared, tmp_path: Path) -> Path:
    pretrain(compose_config(settings(prepared, tmp_path, "run.steps=4")))
    return tmp_path / "mixed"


def test_an_edit_changes_the_steps_after_it_and_none_before(
    run: Path, prepared: Prepared, tmp_path: Path
) -> None:
    first = train_losses(run)
    before = read_ledger(run)
    family = sorted(before.entries[0].families)[0]
    copy = shutil.copytree(run, tmp_path / "copy" / "mixed")
    pretrain(compose_config(settings(prepared, tmp_path / "copy", "run.steps=8")))
    pretrain_settings = settings(prepared, tmp_path, "run.steps=8")
    (run / "config.yaml").write_text(
        (run / "config.yaml").read_text().replace("  steps: 4\n", "  steps: 8\n")
    )
    edited = edit_mixture(
        run, [f"data.mixture.families.{family}=0.9"], from_step=6, reason="more of it"
    )
    assert [e.from_step for e in edited.entries] == [0, 6]
    assert edited.entries[1].reason == "more of it"
    assert read_ledger(run) == edited
    pretrain(compose_config(pretrain_settings))
    plain, changed = train_losses(copy), train_losses(run)
    assert changed[:4] == first and changed[:6] == plain[:6]
    assert changed[6:] != plain[6:] and len(changed) == 8
    state = json.loads((run / "checkpoints" / "step-8" / "state.json").read_text())
    assert len(state["ledger"]["entries"]) == 2


def test_the_past_is_refused_and_so_is_a_ledger_that_rewrites_it(
    run: Path, prepared: Prepared, tmp_path: Path
) -> None:
    more = settings(prepared, tmp_path, "run.steps=8")
    (run / "config.yaml").write_text(
        (run / "config.yaml").read_text().replace("  steps: 4\n", "  steps: 8\n")
    )
    with pytest.raises(ValueError, match="would edit the past: the run is at step 4"):
        edit_mixture(run, ["data.mixture.family_temperature=1"], from_step=2)
    with pytest.raises(UserError, match=r"--from=8 is not before the run's end, run.steps=8"):
        edit_mixture(run, ["data.mixture.family_temperature=1"], from_step=8)
    text = (run / "ledger.json").read_text()
    (run / "ledger.json").write_text(text.replace('"seed":0', '"seed":1'))
    with pytest.raises(UserError, match="decides steps before 4 in another way"):
        pretrain(compose_config(more))
    (run / "ledger.json").unlink()
    pretrain(compose_config(more))
    assert read_ledger(run) is not None and len(train_losses(run)) == 8


def test_a_shard_in_quarantine_is_never_read_again(
    run: Path, prepared: Prepared, tmp_path: Path
) -> None:
    (run / "config.yaml").write_text(
        (run / "config.yaml").read_text().replace("  steps: 4\n", "  steps: 8\n")
    )
    manifest = Manifest.load(prepared.folder)
    source = max(manifest.sources.values(), key=lambda s: s.shards.tokens)
    (shard, *others) = TokenLine(prepared.folder, source.shards).shards
    assert not others, "the test's sources have one shard each"
    with pytest.raises(ValueError, match=f"leaves nothing of {source.name}"):
        edit_mixture(run, [], from_step=5, quarantine=[shard.path])
    edited = edit_mixture(run, [f"data.mixture.languages.{source.language}=0"], from_step=5)
    assert source.name not in edited.entries[-1].sources.get(source.language, {})
    with pytest.raises(UserError, match="no training source holds a shard of that path"):
        edit_mixture(run, [], from_step=6, quarantine=["train/nix/0.tar"])
    with pytest.raises(UserError, match="it is not in quarantine at step 6"):
        edit_mixture(run, [], from_step=6, release=[shard.path])


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["run.steps=5"], "the mixture of a run is edited with data.mixture.KEY=VALUE only"),
        (["data.mixture.max_epoch=2"], "unknown key 'max_epoch'; did you mean 'max_epochs'"),
        (["data.mixture.families.x=2"], "families.x=2.* must be between 0 and 1"),
        (["data.mixture.stages=[{from_step: 4}]"], "an edit is one decision"),
    ],
)
def test_an_edit_that_is_none_is_refused(given: list[str], told: str) -> None:
    with pytest.raises(UserError, match=told):
        build_mixture({}, given)


def test_an_edit_starts_from_the_settings_in_force() -> None:
    mixture = build_mixture(
        {"max_epochs": 4.0, "families": {"a": 0.5}}, ["data.mixture.families.b=0.2"]
    )
    assert mixture.max_epochs == 4.0 and mixture.families == {"a": 0.5, "b": 0.2}


def test_a_run_goes_on_over_an_extended_folder_and_reads_what_is_new_when_told(
    prepared: Prepared, tmp_path: Path, xylem
) -> None:
    folder = shutil.copytree(prepared.folder, tmp_path / "shards")
    more = write_corpus(tmp_path / "more", seed=1)
    given = settings(prepared, tmp_path, f"data.prepared={folder}")
    pretrain(compose_config([*given, "run.steps=2"]))
    run = tmp_path / "mixed"
    told = xylem("mixture", str(run), "--new-sources", "run.steps=6")
    assert told.returncode == 2 and "holds nothing that the mixture" in told.stderr
    told = xylem("prepare", *given, f"data.corpus={more}", "--extend", "books")
    assert told.returncode == 0, told.stderr
    pretrain(compose_config([*given, "run.steps=4"]))
    assert not any("@books" in name for name in source_shares(read_ledger(run).entries[-1]))
    told = xylem("mixture", str(run), "--new-sources", "run.steps=6", "--reason", "more text")
    assert told.returncode == 0, told.stderr
    assert "deu_Latn@books" in source_shares(read_ledger(run).entries[-1])
    pretrain(compose_config([*given, "run.steps=40"]))
    read = json.loads((run / "checkpoints" / "step-40" / "state.json").read_text())["stream"]
    assert read["cursors"]["deu_Latn@books"] > 0
    # The settings may stand after the options too, and an edit of a run under way says how.
    told = xylem("mixture", str(run), "--from", "41", "data.mixture.max_epochs=900", "run.steps=50")
    assert told.returncode == 0, told.stderr
    with run_lock(run):
        told = xylem("mixture", str(run), "--from", "42", "data.mixture.max_epochs=900")
    assert told.returncode == 2 and "triggers/exit" in told.stderr


def test_names_of_sources_may_hold_dots_and_at_signs() -> None:
    given = ["data.mixture.sources.swh_Latn.x3=0.5", "data.mixture.sources.swh_Latn@books=.25"]
    assert build_mixture({}, given).sources == {"swh_Latn.x3": 0.5, "swh_Latn@books": 0.25}
    composed = compose_config([*given, "data.mixture.max_epochs=.inf"]).data.mixture
    assert composed.sources == {"swh_Latn.x3": 0.5, "swh_Latn@books": 0.25}
    assert composed.max_epochs == float("inf")


def test_an_untrained_run_decides_its_mixture_anew(prepared: Prepared, tmp_path: Path) -> None:
    first = compose_config(settings(prepared, tmp_path, "run.steps=4"))
    manifest = Manifest.load(prepared.folder)
    folder = tmp_path / "mixed"
    folder.mkdir()
    stale = first_ledger(first.data, dataclasses.replace(manifest, seed=9), 4)
    write_ledger(folder, stale)
    assert decided_ledger(folder) is None
    pretrain(first)
    assert read_ledger(folder) == first_ledger(first.data, manifest, 4)


def test_a_cap_that_was_decided_for_fewer_steps_is_told(
    prepared: Prepared, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cap = "data.mixture.max_epochs=5"
    pretrain(compose_config(settings(prepared, tmp_path, cap, "run.steps=2")))
    assert "was decided for" not in capsys.readouterr().out
    pretrain(compose_config(settings(prepared, tmp_path, cap, "run.steps=3")))
    assert "max_epochs was decided for 2 steps, and run.steps=3" in capsys.readouterr().out


def test_seen_and_documents_are_told_by_the_command_line(run: Path, xylem) -> None:
    told = xylem("inspect", str(run), "--seen", "4")
    assert told.returncode == 0, told.stderr
    assert "read before step 4" in told.stdout
    assert f"{4 * 4 * 2 * 32:,}" in told.stdout, "steps x slots x sequences x tokens"
    told = xylem("inspect", str(run), "--seen", "400", "--document", "doc/3")
    assert "doc/3 in " in told.stdout and "before step 400" in told.stdout
    told = xylem("inspect", str(run), "--seen", "4", "--document", "nix")
    assert told.returncode == 2 and "no training source holds that id" in told.stderr
    told = xylem("mixture", str(run))
    assert "beginning" in told.stdout and told.returncode == 0
    told = xylem("mixture", str(run), "--from", "3")
    assert told.returncode == 2 and "decides nothing" in told.stderr
