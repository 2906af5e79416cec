"""The datasets that every peer is given: the tokens of a prepared folder, in nobody's format.

`source.json` names the prepared folder, `<code>.npy` holds a language's training tokens as one
line. A sequence is known by the hash of its tokens, so that ids need no room in any format, and
what a stream delivers is compared with what was written. Read next: `promises.py`.
"""

import io
import json
import random
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from xylem.data.config import DataConfig, TokenizerConfig
from xylem.data.manifest import Manifest
from xylem.data.prepare import prepare

from .protocol import Source, sequence_id

PROMISE_LENGTH = 32
"""Tokens a sequence of the dataset on which promises are tried."""
PROMISE_WORDS = {
    "eng_Latn": 3600, "fin_Latn": 2400, "tur_Latn": 1500, "arb_Arab": 960, "jpn_Jpan": 600,
    "kor_Hang": 360, "eus_Latn": 120,
}  # fmt: skip
"""Language -> made-up words: power-law sizes, every language a family of its own."""


@dataclass(frozen=True, slots=True)
class Neutral:
    """A neutral dataset with a sequence length."""

    folder: Path
    prepared: Path
    """The folder its tokens come from."""
    sequence_length: int
    sequences: dict[str, int]
    """Language -> sequences."""

    @property
    def natural_weights(self) -> dict[str, float]:
        """Every language by its size: one pass over all of them ends at once."""
        total = sum(self.sequences.values())
        return {code: count / total for code, count in self.sequences.items()}


def neutral_dataset(prepared: Path, folder: Path, sequence_length: int) -> Neutral:
    """Writes the training tokens of a prepared folder, or finds them written."""
    folder.mkdir(parents=True, exist_ok=True)
    manifest = Manifest.load(prepared)
    dtype = np.uint16 if manifest.vocab_size < 65_536 else np.int32
    counts: dict[str, int] = {}
    for code, entry in manifest.languages.items():
        count = (entry.train_tokens - 1) // sequence_length
        if count < 1:
            continue
        counts[code] = count
        if not (folder / f"{code}.npy").exists():
            tars = sorted((prepared / "train" / code).glob("*.tar"))
            parts = [part for tar in tars for part in _blocks(tar)]
            np.save(folder / f"{code}.npy", np.concatenate(parts).astype(dtype))
    (folder / "source.json").write_text(json.dumps({"prepared": str(prepared.resolve())}))
    return Neutral(folder, prepared, sequence_length, counts)


def _blocks(shard: Path) -> Iterator[NDArray[np.unsignedinteger]]:
    """The tokens of a shard's samples, in their order."""
    with tarfile.open(shard) as tar:
        for member in tar:
            if member.name.endswith(".npy"):
                file = tar.extractfile(member)
                assert file is not None
                yield np.load(io.BytesIO(file.read()))


def identities(data: Neutral) -> dict[str, tuple[str, int]]:
    """Hash of a sequence -> (language, position); equal sequences share the first one's."""
    source = Source(data.folder, data.sequence_length, shard_sequences=1)
    found: dict[str, tuple[str, int]] = {}
    for code in data.sequences:
        for position, tokens in enumerate(source.sequences(code)):
            found.setdefault(sequence_id(tokens), (code, position))
    return found


def promise_dataset(work: Path, words: Mapping[str, int] = PROMISE_WORDS) -> Neutral:
    """The dataset on which promises are tried: made-up words, prepared by Xylem."""
    corpus, prepared = work / "corpus", work / "prepared"
    corpus.mkdir(parents=True, exist_ok=True)
    for code, count in words.items():
        if (corpus / f"{code}.jsonl").exists():
            continue
        draw = random.Random(code)
        vocabulary = ["".join(draw.choices("abdeiklmnorstu", k=5)) for _ in range(400)]
        lines = [
            json.dumps({"id": f"{code}/{n}", "text": " ".join(draw.choices(vocabulary, k=60))})
            for n in range(count // 60)
        ]
        (corpus / f"{code}.jsonl").write_text("\n".join(lines) + "\n")
    config = DataConfig(
        corpus=str(corpus),
        prepared=str(prepared),
        heldout_share=0.0,
        shard_tokens=64 * PROMISE_LENGTH,
        sequence_length=PROMISE_LENGTH,
        tokenizer=TokenizerConfig(vocab_size=500),
    )
    prepare(config, console=Console(quiet=True))
    return neutral_dataset(prepared, work / "neutral", PROMISE_LENGTH)
