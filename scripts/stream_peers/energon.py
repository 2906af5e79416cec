# mypy: disable-error-code="import-not-found,import-untyped,untyped-decorator"
"""Megatron-Energon: WebDataset folders with an index, blended by weight, with a savable loader."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .protocol import Loader, Peer, Source, Stream, serve

SLICE = 100
"""Sequences read in a row from one place, as its manual suggests (`max_samples_per_sequence`)."""


def load() -> None:
    """Imports the library."""
    import megatron.energon  # noqa: F401


def write(source: Source, folder: Path) -> None:
    """A prepared WebDataset a language; a sample is its raw tokens."""
    import webdataset
    from megatron.energon.flavors import BaseWebdatasetFactory

    for code in source.languages:
        (folder / code).mkdir()
        names = []
        for number, (start, sequences) in enumerate(source.shards(code)):
            names.append(f"{number:05d}.tar")
            with webdataset.TarWriter(str(folder / code / names[-1])) as tar:
                for i, tokens in enumerate(sequences, start):
                    tar.write({"__key__": f"{code}-{i:08d}", "bin": tokens.tobytes()})
        BaseWebdatasetFactory.prepare_dataset(
            folder / code, names, split_parts_ratio=[("train", 1.0)], workers=1
        )
        (folder / code / ".nv-meta" / "dataset.yaml").write_text(
            "__module__: megatron.energon\n__class__: CrudeWebdataset\n"
        )
        (folder / "dtype").write_text(sequences.dtype.str)


def open_stream(folder: Path, loader: Loader) -> Stream:
    """The training dataset of its manual behind its savable loader, which saves often enough."""
    from megatron import energon

    dtype = np.dtype((folder / "dtype").read_text())

    @energon.stateless
    def cook(sample: dict[str, Any]) -> Any:
        tokens = torch.from_numpy(np.frombuffer(sample["bin"], dtype).astype(np.int64))
        return energon.TextSample(**energon.basic_sample_keys(sample), text=tokens)

    class Tokens(energon.DefaultTaskEncoder):
        """Raw tokens to a batch [B, T]."""

        cookers = [energon.Cooker(cook)]  # noqa: RUF012
        decoder = None

        @energon.stateless
        def batch(self, samples: list[Any]) -> Tensor:
            return torch.stack([sample.text for sample in samples])

    parts = [
        {"path": str(folder / code), "weight": weight}
        for code, weight in sorted(loader.weights.items())
    ]
    settings = json.dumps(
        {
            "__module__": "megatron.energon",
            "__class__": "MetadatasetV2",
            "splits": {"train": {"blend": parts}},
        }
    )
    # Ranks write at the same time, and each mixture is a file of its own.
    digest = hashlib.sha256(settings.encode()).hexdigest()[:12]
    blend = folder / f"blend-{digest}-{loader.rank}.yaml"
    blend.write_text(settings)
    dataset = energon.get_train_dataset(
        blend,
        worker_config=energon.WorkerConfig(
            rank=loader.rank,
            world_size=loader.world,
            num_workers=loader.workers,
            seed_offset=loader.seed,
        ),
        batch_size=loader.batch,
        shuffle_buffer_size=loader.buffer,
        max_samples_per_sequence=min(SLICE, loader.buffer),
        task_encoder=Tokens(),
    )
    # Without its watchdog, whose thread would only ever report that the bench paused.
    batches = energon.get_savable_loader(dataset, watchdog_timeout_seconds=None)
    if loader.state is not None:
        batches.restore_state_rank(loader.state)

    def read() -> Iterator[Tensor]:
        while True:
            yield from batches

    return Stream(read(), batches.save_state_rank)


if __name__ == "__main__":
    serve(Peer(load=load, write=write, open=open_stream))
