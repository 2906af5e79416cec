# mypy: disable-error-code="import-not-found,import-untyped"
"""MosaicML Streaming: MDS shards, an epoch's permutation in shared memory, mixed by proportion."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .protocol import Loader, Peer, Source, Stream, serve


def load() -> None:
    """Imports the library."""
    import streaming  # noqa: F401


def clean() -> None:
    """What its manual asks for after a killed process: shared memory that nobody owns."""
    from streaming.base.util import clean_stale_shared_memory

    clean_stale_shared_memory()


def write(source: Source, folder: Path) -> None:
    """An MDS folder a language, with the hashes that it can check."""
    from streaming import MDSWriter

    for code in source.languages:
        sequences = source.sequences(code)
        _, first = next(source.shards(code))
        with MDSWriter(
            out=str(folder / code),
            columns={"tokens": f"ndarray:{sequences.dtype.name}:{source.sequence_length}"},
            hashes=["sha1"],
            size_limit=(first.nbytes + 8 * len(first)) * 101 // 100,
        ) as out:
            for tokens in sequences:
                out.write({"tokens": tokens})


def open_stream(folder: Path, loader: Loader) -> Stream:
    """Its dataset and loader, with hashes checked: which it does when it fetches a shard.

    An epoch has as many sequences as the dataset, each language's part by its proportion.
    """
    from streaming import Stream as Language
    from streaming import StreamingDataLoader, StreamingDataset

    def place(code: str) -> dict[str, str]:
        if loader.cache is None:
            return {"local": str(folder / code)}
        return {"remote": str(folder / code), "local": str(Path(loader.cache) / code)}

    dataset = StreamingDataset(
        streams=[
            Language(**place(code), proportion=weight, validate_hash="sha1")
            for code, weight in sorted(loader.weights.items())
        ],
        batch_size=loader.batch,
        shuffle=True,
        shuffle_seed=loader.seed,
        num_canonical_nodes=1,
        validate_hash="sha1",
    )
    batches = StreamingDataLoader(
        dataset, batch_size=loader.batch, num_workers=loader.workers, collate_fn=_collate
    )
    if loader.state is not None:
        batches.load_state_dict(loader.state)

    def read() -> Iterator[Tensor]:
        while True:
            for batch in batches:
                if len(batch) == loader.batch:  # the last of an epoch may be short
                    yield batch

    return Stream(read(), batches.state_dict)


def _collate(samples: list[dict[str, np.ndarray]]) -> Tensor:
    return torch.from_numpy(np.stack([s["tokens"] for s in samples]).astype(np.int64))


if __name__ == "__main__":
    serve(Peer(load=load, write=write, open=open_stream, clean=clean))
