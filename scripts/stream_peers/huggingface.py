# mypy: disable-error-code="import-not-found,import-untyped"
"""Hugging Face datasets, streamed from Arrow files, behind torchdata's StatefulDataLoader.

Arrow and not parquet: in datasets 5.2 an iterator over parquet sleeps for five seconds when it is
closed (`SLEEP_TIME_ON_THREADS_SHUTDOWN`), which interleaving does whenever a language begins anew.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .protocol import Loader, Peer, Source, Stream, serve

RECORD_BATCH = 64
"""Sequences a record batch."""


def load() -> None:
    """Imports both libraries."""
    import datasets
    import torchdata.stateful_dataloader  # noqa: F401

    datasets.disable_progress_bars()


def write(source: Source, folder: Path) -> None:
    """Arrow files of a column of raw tokens, uncompressed: the fastest form to read."""
    import pyarrow

    for code in source.languages:
        (folder / code).mkdir()
        for number, (_, sequences) in enumerate(source.shards(code)):
            rows = pyarrow.array([tokens.tobytes() for tokens in sequences], pyarrow.binary())
            table = pyarrow.table({"tokens": rows})
            path = str(folder / code / f"{number:05d}.arrow")
            with (
                pyarrow.OSFile(path, "wb") as file,
                pyarrow.ipc.new_stream(file, table.schema) as out,
            ):
                out.write_table(table, max_chunksize=RECORD_BATCH)
        (folder / "dtype").write_text(sequences.dtype.str)


def open_stream(folder: Path, loader: Loader) -> Stream:
    """A shuffled stream a language, interleaved by weight, split over the ranks."""
    import datasets
    from datasets.distributed import split_dataset_by_node
    from torchdata.stateful_dataloader import StatefulDataLoader

    dtype = np.dtype((folder / "dtype").read_text())

    def collate(samples: list[dict[str, Any]]) -> Tensor:
        rows = [np.frombuffer(sample["tokens"], dtype) for sample in samples]
        return torch.from_numpy(np.stack(rows).astype(np.int64))

    codes = sorted(loader.weights)
    languages = [
        datasets.load_dataset(
            "arrow",
            data_files=[str(path) for path in sorted((folder / code).glob("*.arrow"))],
            split="train",
            streaming=True,
        ).shuffle(seed=loader.seed, buffer_size=loader.buffer)
        for code in codes
    ]
    total = sum(loader.weights.values())
    mixed = datasets.interleave_datasets(
        languages,
        probabilities=[loader.weights[code] / total for code in codes],
        seed=loader.seed,
        stopping_strategy="all_exhausted",
    )
    if loader.world > 1:
        mixed = split_dataset_by_node(mixed, rank=loader.rank, world_size=loader.world)
    batches = StatefulDataLoader(
        mixed,
        batch_size=loader.batch,
        num_workers=loader.workers,
        collate_fn=collate,
        drop_last=True,
    )
    if loader.state is not None:
        batches.load_state_dict(loader.state)

    def read() -> Iterator[Tensor]:
        while True:
            yield from batches

    return Stream(read(), batches.state_dict)


if __name__ == "__main__":
    serve(Peer(load=load, write=write, open=open_stream))
