"""The verb `checkpoint`: damage is named, differences are told, other formats come back equal."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from xylem.train.__main__ import main
from xylem.train.checkpoint import CheckpointWriter, load_weights
from xylem.train.checkpoint_conversion import convert
from xylem.train.checkpoint_files import DamagedCheckpoint, seal
from xylem.train.checkpoint_tools import (
    diff_checkpoints,
    diff_states,
    print_difference,
    print_verified,
    verify_checkpoint,
)
from xylem.train.errors import UserError

from .test_checkpoint import model, pieces, state, stepped


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    writer = CheckpointWriter(tmp_path / "run", keep=2, keep_every=0)
    decoder = model()
    writer.save(pieces(decoder, stepped(decoder)), state(5))
    writer.close()
    return tmp_path / "run" / "checkpoints" / "step-5"


def damage(folder: Path) -> dict[str, str]:
    """File -> the first damage that is found in it."""
    return {r.name: r.damage[0] for r in verify_checkpoint(folder) if r.damage}


def rewrite(file: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """A sealed file of other tensors: damage that no sha256 shows."""
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    seal(file)


def test_a_whole_checkpoint_is_whole(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert damage(saved) == {}
    assert print_verified(saved.parent.parent), "a run is its newest checkpoint"
    assert "whole" in capsys.readouterr().out


def test_flipped_cut_and_missing_files_are_named(saved: Path) -> None:
    content = bytearray((saved / "trunk.safetensors").read_bytes())
    content[-1] ^= 1
    (saved / "trunk.safetensors").write_bytes(content)
    alpha = saved / "optimizer-family-alpha.safetensors"
    alpha.write_bytes(alpha.read_bytes()[:-4])
    (saved / "family-beta.safetensors").unlink()
    (saved / "rng.safetensors").write_bytes(b"{}")
    size = alpha.stat().st_size
    assert damage(saved) == {
        "trunk.safetensors": "is not what was written (sha256 differs)",
        alpha.name: f"has {size:,} bytes, its header says {size + 4:,}",
        "family-beta.safetensors": "is missing (taken out by hand, or lost)",
        "rng.safetensors": f"cannot be read ({saved / 'rng.safetensors'} is no safetensors file)",
    }


def test_a_damaged_state_is_named(saved: Path) -> None:
    (saved / "state.json").write_text("{")
    assert "state.json is not what was written" in damage(saved)["state.json"]


def test_what_no_seal_shows_is_found(saved: Path) -> None:
    trunk, optimizer = saved / "trunk.safetensors", saved / "optimizer-trunk.safetensors"
    rewrite(trunk, lambda held: held["final_norm.weight"].fill_(torch.nan))
    assert damage(saved) == {trunk.name: "final_norm.weight holds infinities or NaN"}
    rewrite(trunk, lambda held: held["final_norm.weight"].fill_(1.0))
    rewrite(optimizer, lambda held: held.pop("final_norm.weight/exp_avg_sq"))
    expected = "final_norm.weight has exp_avg, step of its optimiser state, not exp_avg, exp_avg_sq"
    assert damage(saved)[optimizer.name].startswith(expected)
    rewrite(trunk, lambda held: held.pop("final_norm.weight"))
    assert damage(saved)[optimizer.name].endswith("there is no such parameter")
    alpha, beta = (saved / f"family-{name}.safetensors" for name in ("alpha", "beta"))
    (name,) = [key for key in load_file(alpha) if "down" in key]
    rewrite(beta, lambda held: held.update({name: load_file(alpha)[name]}))
    assert damage(saved)[beta.name] == f"{name} belongs into {alpha.name}"


def test_verify_exits_1_and_names_the_file(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["checkpoint", "verify", str(saved)])
    (saved / "family-beta.safetensors").unlink()
    with pytest.raises(SystemExit) as left:
        main(["checkpoint", "verify", str(saved)])
    assert left.value.code == 1
    assert f"{saved / 'family-beta.safetensors'}: is missing" in capsys.readouterr().out


def test_diff_tells_tensors_states_and_steps(saved: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(saved, other)
    assert print_difference(saved, other)
    rewrite(other / "trunk.safetensors", lambda held: held["final_norm.weight"][0].add_(0.5))
    rewrite(other / "optimizer-trunk.safetensors", lambda held: held.pop("embed.weight/step"))
    (other / "family-beta.safetensors").unlink()
    told = diff_checkpoints(saved, other)
    trunk = told["trunk.safetensors"]
    assert (trunk.moved, trunk.largest, trunk.where) == (1, 0.5, "final_norm.weight")
    (line,) = told["optimizer-trunk.safetensors"].told
    assert line == f"embed.weight/step is only in {saved}"
    assert len(told["family-beta.safetensors"].told) == 2
    assert not told["family-alpha.safetensors"].differs
    text = (other / "state.json").read_text().replace('"step": 5', '"step": 6')
    (other / "state.json").write_text(text)
    seal(other / "state.json")
    assert diff_states(saved, other) == ["step is 5 and 6", "stream differs in step"]
    assert not print_difference(saved, other)
    with pytest.raises(SystemExit) as left:
        main(["checkpoint", "diff", str(saved), str(other)])
    assert left.value.code == 1


def test_numbers_that_are_nan_in_both_are_equal(saved: Path, tmp_path: Path) -> None:
    trunk = "trunk.safetensors"
    rewrite(saved / trunk, lambda held: held["final_norm.weight"][:2].fill_(torch.nan))
    other = tmp_path / "other"
    shutil.copytree(saved, other)
    assert print_difference(saved, other)
    rewrite(other / trunk, lambda held: held["final_norm.weight"][2].add_(0.5))
    told = diff_checkpoints(saved, other)[trunk]
    assert (told.moved, told.largest, told.where) == (1, 0.5, "final_norm.weight")
    rewrite(other / trunk, lambda held: held["final_norm.weight"][3].fill_(torch.nan))
    rewrite(other / trunk, lambda held: held["layers.0.attention_norm.weight"][3].add_(2.0))
    told = diff_checkpoints(saved, other)[trunk]
    assert (told.moved, str(told.largest), told.where) == (2, "nan", "final_norm.weight")


def test_a_shape_that_differs_is_told(saved: Path, tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path / "wide", keep=2, keep_every=0)
    decoder = model(width=32)
    writer.save(pieces(decoder, stepped(decoder)), state(5))
    writer.close()
    told = diff_checkpoints(saved, tmp_path / "wide" / "checkpoints" / "step-5")
    assert any("F32 [48, 16] and F32 [64, 16]" in line for line in told["trunk.safetensors"].told)


def test_a_distributed_checkpoint_comes_back_byte_for_byte(saved: Path, tmp_path: Path) -> None:
    convert(saved, tmp_path / "dcp", "dcp")
    convert(tmp_path / "dcp", tmp_path / "back", "checkpoint")
    files = {path.name: path.read_bytes() for path in saved.iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "back").iterdir()} == files
    load_weights(tmp_path / "back", model(seed=1))


@pytest.mark.parametrize(("dtype", "kept"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_weights_alone_are_families_in_files_of_their_own(
    dtype: str, kept: torch.dtype, saved: Path, tmp_path: Path
) -> None:
    convert(saved, tmp_path / "weights", "weights", dtype)
    names = {path.name for path in (tmp_path / "weights").glob("*.safetensors")}
    assert names == {f"{n}.safetensors" for n in ("trunk", "family-alpha", "family-beta")}
    for name in names:
        theirs = load_file(tmp_path / "weights" / name)
        assert theirs.keys() == load_file(saved / name).keys()
        for key, tensor in load_file(saved / name).items():
            assert torch.equal(theirs[key], tensor.to(kept)), key


def test_mistakes_are_one_line(saved: Path, tmp_path: Path) -> None:
    from xylem.train.checkpoint_tools import checkpoint_folder

    with pytest.raises(UserError, match="is no checkpoint and no run with one: give a folder"):
        checkpoint_folder(tmp_path)
    with pytest.raises(UserError, match="is there already: choose another folder"):
        convert(saved, saved, "weights")
    with pytest.raises(UserError, match="it has no .metadata; --to=checkpoint reads what --to=dcp"):
        convert(saved, tmp_path / "new", "checkpoint")
    with pytest.raises(UserError, match="--dtype=bf16 has no effect with --to=dcp"):
        convert(saved, tmp_path / "new", "dcp", "bf16")
    assert not (tmp_path / "new").exists()
    with pytest.raises(UserError, match="which --to=dcp does not write"):
        import torch.distributed.checkpoint as dcp

        dcp.save({"other": torch.ones(1)}, checkpoint_id=tmp_path / "theirs", no_dist=True)
        convert(tmp_path / "theirs", tmp_path / "new", "checkpoint")


def test_convert_refuses_a_checkpoint_that_lost_a_familys_file(saved: Path, tmp_path: Path) -> None:
    (saved / "family-alpha.safetensors").unlink()
    for to in ("weights", "dcp"):
        with pytest.raises(DamagedCheckpoint, match="family-alpha.safetensors is missing"):
            convert(saved, tmp_path / to, to)
        assert not (tmp_path / to).exists()


def test_diff_finds_damage_before_differences(saved: Path) -> None:
    file = saved / "trunk.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(DamagedCheckpoint, match="trunk.safetensors is not what was written"):
        diff_checkpoints(saved, saved)


def test_a_target_that_cannot_be_written_is_a_mistake(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot be written .*choose another folder"):
        convert(saved, tmp_path / "file" / "below", "weights")
