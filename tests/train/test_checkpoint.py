"""Checkpoints: whole or not there, verified on load, families in files of their own."""

import json
import os
import resource
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from xylem.data.ledger import SHARE_TOTAL, Ledger, LedgerEntry, integer_shares
from xylem.model.config import LayerPlan, ModelConfig
from xylem.model.decoder import Decoder, build_decoder, parameter_family, saved_tensors
from xylem.model.routers import FamilySegment
from xylem.train.checkpoint import (
    CheckpointReader,
    CheckpointWriter,
    DamagedCheckpoint,
    RunState,
    latest_checkpoint,
    load_weights,
    read_state,
    read_tensors,
)
from xylem.train.checkpoint_files import seal
from xylem.train.errors import UserError
from xylem.train.optimizer import OptimConfig, Optimizers
from xylem.train.pieces import OPTIMIZER, WEIGHTS, Piece, whole_piece


def model(width: int = 24, families: tuple[str, ...] = ("alpha", "beta"), seed: int = 0) -> Decoder:
    config = ModelConfig(
        vocab_size=50,
        hidden_size=16,
        heads=2,
        kv_heads=1,
        head_dim=8,
        layer_plan=(LayerPlan(trunk_width=width, expert_width=8),),
    )
    return build_decoder(config, families, seed=seed)


def stepped(decoder: Decoder) -> Optimizers:
    optimizers = Optimizers(decoder, OptimConfig(), 10)
    tokens = torch.arange(20).view(2, 10)
    decoder.logits(
        tokens, torch.zeros_like(tokens), (FamilySegment("alpha", 0, 2),)
    ).square().mean().backward()
    optimizers.step(0)
    return optimizers


def pieces(decoder: Decoder, optimizers: Optimizers) -> list[Piece]:
    """What one process alone writes."""
    held = [whole_piece(WEIGHTS, name, tensor) for name, tensor in saved_tensors(decoder).items()]
    for name, key, value in optimizers.state():
        held.append(whole_piece(OPTIMIZER, f"{name}/{key}", value))
    return held


def load_optimizers(folder: Path, decoder: Decoder, optimizers: Optimizers) -> None:
    """What one process alone loads."""
    reader = CheckpointReader(folder)
    reader.verify()
    reader.check({name: tuple(tensor.shape) for name, tensor in saved_tensors(decoder).items()})

    def state_of(name: str, key: str, parameter: torch.Tensor) -> torch.Tensor | None:
        like = torch.zeros(()) if key == "step" else parameter
        whole = whole_piece(OPTIMIZER, f"{name}/{key}", like)
        values = reader.read(OPTIMIZER, whole.name, whole.shape, whole.view, 0, whole.stop)
        return None if values is None else values.view_as(like)

    optimizers.load(state_of)


def state(step: int) -> RunState:
    entry = LedgerEntry(
        from_step=0,
        slots=2,
        families=integer_shares({"alpha": 5, "beta": 7}),
        languages={"alpha": {"a": SHARE_TOTAL}, "beta": {"b": SHARE_TOTAL}},
        sources={"a": {"a": SHARE_TOTAL}, "b": {"b": SHARE_TOTAL}},
        manifest_hash="m",
    )
    ledger = Ledger(seed=0, sequence_length=4, slot_sequences=1, entries=(entry,))
    return RunState(
        step=step,
        ledger=ledger,
        stream={"step": step},
        order_fingerprint="f",
        tokens_seen=8 * step,
        seconds=1.5,
    )


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    writer = CheckpointWriter(tmp_path, keep=2, keep_every=0)
    decoder = model()
    writer.save(pieces(decoder, stepped(decoder)), state(5))
    writer.close()
    folder = latest_checkpoint(tmp_path)
    assert folder is not None
    return folder


def test_what_is_loaded_is_what_was_saved(saved: Path) -> None:
    trained = model()
    optimizers = stepped(trained)
    fresh = model(seed=1)
    load_weights(saved, fresh)
    for (name, ours), theirs in zip(trained.named_parameters(), fresh.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    other = Optimizers(fresh, OptimConfig(), 10)
    load_optimizers(saved, fresh, other)
    ours_state, theirs_state = ({(n, k): v for n, k, v in o.state()} for o in (optimizers, other))
    assert ours_state.keys() == theirs_state.keys()
    assert all(torch.equal(v, theirs_state[key]) for key, v in ours_state.items())
    assert replace(read_state(saved), files=()) == state(5)


def test_a_family_has_files_of_its_own(saved: Path) -> None:
    names = {path.name for path in saved.glob("*.safetensors")}
    assert names == {
        "trunk.safetensors",
        "family-alpha.safetensors",
        "family-beta.safetensors",
        "optimizer-trunk.safetensors",
        "optimizer-family-alpha.safetensors",  # beta was never stepped, so it has no state
        "rng.safetensors",
    }
    for name in ("alpha", "beta"):
        for key in read_tensors(saved / f"family-{name}.safetensors"):
            assert parameter_family(key) == name


def test_a_family_can_be_taken_out_without_touching_another_byte(saved: Path) -> None:
    before = {p.name: p.read_bytes() for p in saved.iterdir() if "alpha" not in p.name}
    for path in list(saved.glob("*family-alpha*")):
        path.unlink()
    load_weights(saved, model(families=("beta",)))
    assert {p.name: p.read_bytes() for p in saved.iterdir()} == before


@pytest.mark.parametrize("file", ["trunk.safetensors", "family-beta.safetensors", "state.json"])
def test_a_flipped_bit_is_found(saved: Path, file: str) -> None:
    content = bytearray((saved / file).read_bytes())
    content[len(content) // 2] ^= 1
    (saved / file).write_bytes(content)
    with pytest.raises(DamagedCheckpoint, match=rf"{file} is not what was written"):
        read_state(saved)
        load_weights(saved, model())


def test_a_truncated_or_missing_file_is_found(saved: Path) -> None:
    trunk = saved / "trunk.safetensors"
    trunk.write_bytes(trunk.read_bytes()[:-1])
    with pytest.raises(DamagedCheckpoint, match="trunk.safetensors is not what was written"):
        load_weights(saved, model())
    trunk.unlink()
    with pytest.raises(DamagedCheckpoint, match=r"trunk.safetensors is missing"):
        load_weights(saved, model())


def test_a_checkpoint_of_another_model_names_the_differences(saved: Path) -> None:
    with pytest.raises(UserError, match=r"another model \(2 differences\): .*trunk.gate_up"):
        load_weights(saved, model(width=32))


def test_nearest_names_are_told(saved: Path) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in saved_tensors(model()).items()}
    shapes["final_norm.scale"] = shapes.pop("final_norm.weight")
    expected = (
        r"another model \(2 differences\): missing final_norm.scale \(nearest: "
        r"final_norm.weight\); unknown final_norm.weight \(nearest: final_norm.scale\); use"
    )
    with pytest.raises(UserError, match=expected):
        CheckpointReader(saved).check(shapes)


def test_families_that_were_never_there_are_another_model(saved: Path) -> None:
    expected = r"another model \(2 differences\): missing .*experts.gamma.* \(nearest: .*beta"
    with pytest.raises(UserError, match=expected):
        load_weights(saved, model(families=("beta", "gamma")))


def test_another_format_is_refused(saved: Path) -> None:
    path = saved / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))
    seal(path)
    with pytest.raises(UserError, match="another checkpoint format"):
        read_state(saved)


def test_a_full_disk_leaves_the_last_checkpoint_and_says_so(
    tmp_path: Path,
) -> None:
    writer = CheckpointWriter(tmp_path, keep=2, keep_every=0)
    decoder = model()
    optimizers = stepped(decoder)
    writer.save(pieces(decoder, optimizers), state(5))
    writer.wait()

    # A real refusal to write, from the kernel: no file may grow beyond 2 kB.
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, limits[1]))
    try:
        writer.save(pieces(decoder, optimizers), state(6))
        with pytest.raises(OSError, match=r"step-6 could not be written .*: those written before"):
            writer.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoints" / "step-5"
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["latest", "step-5"]


def test_a_killed_writers_leftovers_are_removed_and_never_loaded(tmp_path: Path) -> None:
    leftover = tmp_path / "checkpoints" / "step-7.tmp"
    leftover.mkdir(parents=True)
    (leftover / "trunk.safetensors").write_bytes(b"half")
    assert latest_checkpoint(tmp_path) is None
    CheckpointWriter(tmp_path, keep=2, keep_every=0).close()
    assert not leftover.exists()


def test_old_checkpoints_go_and_chosen_ones_stay(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path, keep=2, keep_every=4)
    decoder = model()
    optimizers = stepped(decoder)
    for step in range(1, 8):
        writer.save(pieces(decoder, optimizers), state(step))
    writer.close()
    kept = sorted(p.name for p in (tmp_path / "checkpoints").glob("step-*"))
    assert kept == ["step-4", "step-6", "step-7"]


def test_going_back_sets_the_newer_ones_aside_and_keeps_what_is_saved_next(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path, keep=2, keep_every=4)
    decoder = model()
    optimizers = stepped(decoder)
    for step in range(1, 13):
        writer.save(pieces(decoder, optimizers), state(step))
    writer.close()
    writer = CheckpointWriter(tmp_path, keep=2, keep_every=4, resumed_at=4)
    writer.save(pieces(decoder, optimizers), state(5))
    writer.close()
    root = tmp_path / "checkpoints"
    assert latest_checkpoint(tmp_path) == root / "step-5"
    assert sorted(p.name for p in root.glob("step-*")) == ["step-4", "step-5"]
    assert sorted(p.name for p in root.glob("abandoned-*")) == [
        f"abandoned-step-{n}" for n in (11, 12, 8)
    ]


def test_missing_optimiser_state_of_a_family_is_found(saved: Path) -> None:
    for path in list(saved.glob("optimizer-family-alpha*")):
        path.unlink()
    decoder = model()
    with pytest.raises(DamagedCheckpoint, match=r"optimizer-family-alpha.safetensors is missing"):
        load_optimizers(saved, decoder, Optimizers(decoder, OptimConfig(), 10))


def test_files_can_be_read_by_whom_the_umask_lets(saved: Path) -> None:
    mask = os.umask(0)
    os.umask(mask)
    assert {path.stat().st_mode & 0o777 for path in saved.iterdir()} == {0o666 & ~mask}


def test_a_lost_latest_is_found_again_from_the_folders(saved: Path) -> None:
    (saved.parent / "latest").unlink()
    assert latest_checkpoint(saved.parent.parent) == saved


def test_a_latest_that_names_nothing_is_an_error_not_a_new_start(saved: Path) -> None:
    shutil.rmtree(saved)
    with pytest.raises(DamagedCheckpoint, match="names step-5, which does not exist"):
        latest_checkpoint(saved.parent.parent)
