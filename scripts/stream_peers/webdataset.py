# mypy: disable-error-code="import-not-found,import-untyped"
"""webdataset: tar shards, a buffer to shuffle in, `RandomMix` over the languages.

It keeps no state. To come back, the same pipeline is begun again and the batches that were seen are
thrown away; for that everything is seeded. With workers its manual's advice for training is taken
(`resampled=True`): splitting a rare language's few shards over workers leaves some without any.
"""

import itertools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .protocol import Loader, Peer, Source, Stream, serve


def load() -> None:
    """Imports the library."""
    import webdataset  # noqa: F401


def write(source: Source, folder: Path) -> None:
    """A folder of tars a language; a sample is its raw tokens."""
    import webdataset

    for code in source.languages:
        (folder / code).mkdir()
        for number, (start, sequences) in enumerate(source.shards(code)):
            with webdataset.TarWriter(str(folder / code / f"{number:05d}.tar")) as tar:
                for i, tokens in enumerate(sequences, start):
                    tar.write({"__key__": f"{code}-{i:08d}", "bin": tokens.tobytes()})
        (folder / "dtype").write_text(sequences.dtype.str)


def open_stream(folder: Path, loader: Loader) -> Stream:
    """The pipeline of the manual: shards shuffled, samples shuffled in a buffer, mixed, batched."""
    import webdataset

    dtype = np.dtype((folder / "dtype").read_text())
    # RandomMix draws from the global generator; under workers every process must draw its own.
    random.seed(loader.seed * 1_000_003 + loader.rank)

    def decode(sample: dict[str, Any]) -> Tensor:
        return torch.from_numpy(np.frombuffer(sample["bin"], dtype).astype(np.int64))

    codes = sorted(loader.weights)
    datasets = []
    for code in codes:
        tars = [str(path) for path in sorted((folder / code).glob("*.tar"))]
        dataset = webdataset.WebDataset(
            tars,
            shardshuffle=False if loader.workers else len(tars),
            resampled=loader.workers > 0,
            detshuffle=True,
            seed=loader.seed,
            nodesplitter=webdataset.split_by_node,
        )
        shuffled = dataset.shuffle(loader.buffer, rng=random.Random(f"{loader.seed}/{code}"))
        datasets.append(shuffled.map(decode).repeat())
    mixed = webdataset.RandomMix(datasets, [loader.weights[code] for code in codes])
    batches = webdataset.WebLoader(
        mixed, batch_size=loader.batch, num_workers=loader.workers, worker_init_fn=_seed_worker
    )
    seen = itertools.count(loader.state or 0)
    position = [next(seen)]

    def read() -> Iterator[Tensor]:
        for number, batch in enumerate(batches):
            if number >= (loader.state or 0):
                position[0] = next(seen)
                yield batch

    return Stream(read(), lambda: position[0])


def _seed_worker(worker: int) -> None:
    random.seed(f"{torch.initial_seed()}/{worker}")


if __name__ == "__main__":
    serve(Peer(load=load, write=write, open=open_stream))
