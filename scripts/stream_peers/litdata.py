# mypy: disable-error-code="import-not-found,import-untyped"
"""LitData: optimised chunks read by its own `TokensLoader`, combined by weight."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .protocol import Loader, Peer, Source, Stream, serve


def load() -> None:
    """Imports the library, and keeps it from asking a package index for newer versions."""
    os.environ["LITDATA_DISABLE_VERSION_CHECK"] = "1"
    import litdata  # noqa: F401


def write(source: Source, folder: Path) -> None:
    """A folder of chunks a language, of whole sequences."""
    from litdata import TokensLoader
    from litdata.streaming.cache import Cache

    for code in source.languages:
        (folder / code).mkdir()
        sequences = source.sequences(code)
        _, first = next(source.shards(code))
        cache = Cache(
            str(folder / code),
            chunk_size=first.size,
            item_loader=TokensLoader(source.sequence_length),
        )
        for i, tokens in enumerate(sequences):
            cache[i] = torch.from_numpy(tokens.astype(np.int32))
        cache.done()
        cache.merge()


def open_stream(folder: Path, loader: Loader) -> Stream:
    """Its combined dataset and loader, over local chunks."""
    from litdata import (
        CombinedStreamingDataset,
        StreamingDataLoader,
        StreamingDataset,
        TokensLoader,
    )

    codes = sorted(loader.weights)
    combined = CombinedStreamingDataset(
        [
            StreamingDataset(
                str(folder / code),
                item_loader=TokensLoader(loader.sequence_length),
                shuffle=True,
                drop_last=False,
                seed=loader.seed,
            )
            for code in codes
        ],
        weights=[loader.weights[code] for code in codes],
        iterate_over_all=False,
        seed=loader.seed,
    )
    batches = StreamingDataLoader(
        combined, batch_size=loader.batch, num_workers=loader.workers, drop_last=True
    )
    if loader.state is not None:
        batches.load_state_dict(loader.state)

    def read() -> Iterator[Tensor]:
        while True:
            for batch in batches:
                yield batch.long()

    return Stream(read(), batches.state_dict)


if __name__ == "__main__":
    serve(Peer(load=load, write=write, open=open_stream))
