"""Xylem's own stream. The prepared folder is where the neutral dataset comes from, so it is copied.

Its batches hold more than the others': next-token targets and document bounds beside the tokens.
Its state is a step and the mixtures so far; nothing of it is a rank's or a worker's. It has no
workers: a thread reads ahead. A batch is a micro-batch: a step of several is asked for at once, in
slots of four sequences as the default config has them; a step of one batch has slots of one.
"""

import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from .protocol import Loader, Peer, Source, Stream, serve

STEPS = 1_000_000_000
"""A run's end that is never reached."""


def load() -> None:
    """Imports the stream."""
    import xylem.data.stream  # noqa: F401


def write(source: Source, folder: Path) -> None:
    """Copies the prepared folder that the neutral dataset was taken from."""
    prepared = json.loads((source.folder / "source.json").read_text())["prepared"]
    shutil.copytree(prepared, folder / "prepared")


def open_stream(folder: Path, loader: Loader) -> Stream:
    """The stream of a rank, from the step of a state; other weights are a stage from that step."""
    from xylem.data.config import DataConfig
    from xylem.data.manifest import Manifest
    from xylem.data.mixture import MixtureConfig, StageConfig
    from xylem.data.stream import Stream as XylemStream
    from xylem.data.stream import first_ledger

    prepared = folder / "prepared"
    manifest = Manifest.load(prepared)

    def families(weights: dict[str, float]) -> dict[str, float]:
        """Share of each family: what its languages have together."""
        shares = dict.fromkeys(manifest.families, 0.0)
        for code, weight in weights.items():
            shares[manifest.languages[code].family] += weight
        return shares

    def languages(weights: dict[str, float]) -> dict[str, float]:
        """Share of each language in its family."""
        whole = families(weights)
        within = {c: w / whole[manifest.languages[c].family] for c, w in weights.items()}
        return {**dict.fromkeys(manifest.languages, 0.0), **within}

    slot = 4 if loader.batches_a_step > 1 else 1
    # (from which step, weights), oldest first.
    mixtures = loader.state["mixtures"] if loader.state else [(0, loader.weights)]
    step = loader.state["step"] if loader.state else 0
    if mixtures[-1][1] != loader.weights:
        mixtures = [*mixtures, (step, loader.weights)]
    config = DataConfig(
        corpus="",
        prepared=str(prepared),
        sequence_length=loader.sequence_length,
        slot_sequences=slot,
        slots_per_step=loader.batch * loader.world * loader.batches_a_step // slot,
        seed=loader.seed,
        mixture=MixtureConfig(
            families=families(mixtures[0][1]),
            languages=languages(mixtures[0][1]),
            stages=tuple(
                StageConfig(
                    from_step=begin, families=families(weights), languages=languages(weights)
                )
                for begin, weights in mixtures[1:]
            ),
        ),
    )
    stream = XylemStream(
        prepared,
        manifest,
        first_ledger(config, manifest, STEPS),
        rank=loader.rank,
        world=loader.world,
        micro_slots=loader.batch // slot,
        read_ahead=2 + loader.workers,
    )
    if loader.state and mixtures == loader.state["mixtures"]:
        stream.order.restore(loader.state["order"])
    read_batches = itertools.count(1)
    delivered = [0]

    def read() -> Iterator[Tensor]:
        for number in itertools.count(step):
            for micro_batch in stream.batch(number).micro_batches:
                delivered[0] = next(read_batches)
                yield micro_batch.inputs_BT

    def state() -> dict[str, Any]:
        steps, rest = divmod(delivered[0], loader.batches_a_step)
        if rest:
            raise ValueError("a state in the middle of a step")
        following = step + steps
        return {"step": following, "mixtures": mixtures, "order": stream.order.state(following)}

    return Stream(read(), state)


if __name__ == "__main__":
    serve(Peer(load=load, write=write, open=open_stream))
