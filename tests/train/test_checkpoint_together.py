"""Checkpoints that several processes write at once: one's bytes, or one cause for all."""

import errno
import multiprocessing
import os
import re
import resource
import signal
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from math import prod
from pathlib import Path

import pytest

from xylem.train import checkpoint_writer, tensor_files
from xylem.train.checkpoint import CheckpointWriter, latest_checkpoint, load_weights
from xylem.train.pieces import Piece

from .test_checkpoint import model, pieces, state, stepped

Failures = list[BaseException | None]


def everything() -> list[Piece]:
    decoder = model()
    return pieces(decoder, stepped(decoder))


def shared_out(whole: Iterable[Piece], world: int) -> list[list[Piece]]:
    """Pieces cut as shards are: flat stretches, of a length that no row has; scalars to one."""
    shares: list[list[Piece]] = [[] for _ in range(world)]
    for number, piece in enumerate(whole):
        size = prod(piece.shape)
        if size < world:
            shares[number % world].append(piece)
            continue
        cuts = [0, *(size * rank // world | 1 for rank in range(1, world)), size]
        for rank in range(world):
            start, stop = cuts[rank], cuts[rank + 1]
            values = piece.tensor.reshape(-1)[start:stop]
            shares[rank].append(replace(piece, start=start, stop=stop, tensor=values))
    return shares


def writers(run: Path, world: int, minutes: float = 1.0, nonce: str = "") -> list[CheckpointWriter]:
    return [
        CheckpointWriter(
            run,
            keep=2,
            keep_every=0,
            resumed_at=5,
            rank=rank,
            world=world,
            timeout_minutes=minutes,
            nonce=nonce,
        )
        for rank in range(world)
    ]


def save_together(run: Path, shares: Sequence[list[Piece]], step: int = 5) -> Failures:
    """Saves with a thread for each process; what each of them said."""

    def one(writer: CheckpointWriter, share: list[Piece]) -> BaseException | None:
        try:
            writer.save(share, state(step))
            writer.close()
        except (OSError, RuntimeError) as failure:
            return failure
        return None

    with ThreadPoolExecutor(len(shares)) as threads:
        return list(threads.map(one, writers(run, len(shares)), shares))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("world", [2, 3, 4])
def test_many_writers_write_one_writers_files_and_each_byte_once(
    world: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = everything()
    assert save_together(tmp_path / "one", [whole]) == [None]
    written: list[int] = []
    write_all = tensor_files._write_all

    def counted(file: int, data: memoryview, offset: int) -> None:
        written.append(len(data))
        write_all(file, data, offset)

    monkeypatch.setattr(tensor_files, "_write_all", counted)
    assert save_together(tmp_path / "many", shared_out(whole, world)) == [None] * world
    one, many = (tmp_path / name / "checkpoints" for name in ("one", "many"))
    assert contents(one / "step-5") == contents(many / "step-5")
    assert sorted(p.name for p in many.iterdir()) == ["latest", "step-5"]
    rng = (many / "step-5" / "rng.safetensors").stat().st_size
    held = sum(piece.tensor.numel() * piece.tensor.element_size() for piece in whole)
    assert held < sum(written) < held + rng


def test_what_many_wrote_many_times_is_loaded(tmp_path: Path) -> None:
    shares = shared_out(everything(), 2)
    both = writers(tmp_path, 2)
    for step in (5, 6, 7):
        for writer, share in zip(both, shares, strict=True):
            writer.save(share, state(step))
    for writer in both:
        writer.close()
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == ["latest", "step-6", "step-7"]
    newest = latest_checkpoint(tmp_path)
    assert newest is not None
    load_weights(newest, model(seed=1))


def test_one_writers_full_disk_is_every_writers_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares = shared_out(everything(), 3)
    assert save_together(tmp_path, shares) == [None] * 3
    write_pieces = checkpoint_writer.write_pieces

    def full(path: Path, held: Sequence[Piece]) -> None:
        if held[0].start and held[0].tensor.data_ptr() in third:
            raise OSError(errno.ENOSPC, "No space left on device")
        write_pieces(path, held)

    third: set[int] = set()
    to_cpu = replace
    monkeypatch.setattr(checkpoint_writer, "write_pieces", full)

    def marked(piece: Piece, **more: object) -> Piece:
        copy = to_cpu(piece, **more)  # type: ignore[arg-type]
        if any(piece is other for other in shares[2]):
            third.add(copy.tensor.data_ptr())
        return copy

    monkeypatch.setattr(checkpoint_writer, "replace", marked)
    failures = save_together(tmp_path, shares, step=6)
    told = {str(failure) for failure in failures}
    assert len(told) == 1, told
    (cause,) = told
    assert "step-6 could not be written (process 2: [Errno 28] No space left on device)" in cause
    assert "those written before stand; make room" in cause
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoints" / "step-5"
    assert not (tmp_path / "checkpoints" / "step-6.tmp").exists()


def test_a_disk_without_room_has_one_cause_for_all(tmp_path: Path) -> None:
    # A real refusal to write, from the kernel: no file may grow beyond 2 kB.
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, limits[1]))
    try:
        failures = save_together(tmp_path, shared_out(everything(), 2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len({str(failure) for failure in failures}) == 1
    assert re.search(r"\(process [01]: \[Errno 27\] File too large\)", str(failures[0]))


def test_pieces_that_are_not_the_whole_are_refused(tmp_path: Path) -> None:
    shares = shared_out(everything(), 2)
    name = shares[1][0].name
    failures = save_together(tmp_path, [shares[0], shares[1][1:]])
    expected = rf"process 0: the engine's pieces hold \d+ elements of {name}, which has 800"
    for failure in failures:
        assert failure is not None
        with pytest.raises((OSError, RuntimeError), match=expected):
            raise failure
    twice = save_together(tmp_path, [shares[0] + shares[1][:1], shares[1]])
    assert all("pieces hold" in str(failure) for failure in twice)
    assert latest_checkpoint(tmp_path) is None


def in_a_process_that_dies(writer: CheckpointWriter, share: list[Piece]) -> None:
    """Saves as another process, which is killed hard while it writes."""

    def die(path: Path, held: Sequence[Piece]) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def child() -> None:
        checkpoint_writer.write_pieces = die  # type: ignore[assignment]
        writer.save(share, state(6))
        writer.wait()

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize("killed", [0, 1])
def test_a_writer_killed_in_the_middle_leaves_no_checkpoint_and_no_trace(
    killed: int, tmp_path: Path
) -> None:
    shares = shared_out(everything(), 2)
    assert save_together(tmp_path, shares) == [None, None]
    both = writers(tmp_path, 2, minutes=0.01)
    other = both[1 - killed]
    # The one that dies lives until the other has listed its pieces.
    with ThreadPoolExecutor(1) as thread:
        dying = thread.submit(in_a_process_that_dies, both[killed], shares[killed])
        other.save(shares[1 - killed], state(6))
        dying.result()
        with pytest.raises(OSError, match=rf"process {killed} did not answer \(\w+\) within 0.01 "):
            other.wait()
    root = tmp_path / "checkpoints"
    assert latest_checkpoint(tmp_path) == root / "step-5"
    assert not (root / "step-6").exists()
    writers(tmp_path, 2)
    assert sorted(path.name for path in root.iterdir()) == ["latest", "step-5"]


def test_nobody_meets_in_what_an_earlier_start_left(tmp_path: Path) -> None:
    whole = everything()
    shares = shared_out(whole, 2)
    both = writers(tmp_path, 2, nonce="now")
    root = tmp_path / "checkpoints"
    # What a killed start left, seen late on a slow file system.
    for stale in (root / "meeting-5", root / "meeting-5-before"):
        stale.mkdir(parents=True)
        (stale / "files").write_text('["trunk.safetensors"]')
        (stale / "pieces-1").write_text("{}")
        (stale / "failed-0").write_text("long ago")
    both[1].save(shares[1], state(5))
    both[0].save(shares[0], state(5))
    for writer in both:
        writer.close()
    assert save_together(tmp_path / "one", [whole]) == [None]
    assert contents(root / "step-5") == contents(tmp_path / "one" / "checkpoints" / "step-5")


def test_a_family_is_added_without_touching_another_byte(tmp_path: Path) -> None:
    wide = model(families=("alpha", "beta", "gamma"))
    save: Callable[[Path, list[Piece]], Failures] = lambda run, held: save_together(run, [held])  # noqa: E731
    save(tmp_path / "wide", pieces(wide, stepped(wide)))
    save(tmp_path / "narrow", everything())
    folder = tmp_path / "narrow" / "checkpoints" / "step-5"
    before = contents(folder)
    for path in (tmp_path / "wide" / "checkpoints" / "step-5").glob("family-gamma*"):
        (folder / path.name).write_bytes(path.read_bytes())
    load_weights(folder, model(families=("alpha", "beta", "gamma"), seed=1))
    assert {name: data for name, data in contents(folder).items() if name in before} == before
