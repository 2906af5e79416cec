"""The tokenizer: SentencePiece BPE with byte fallback, trained on a fair sample of the languages.

Nothing is normalised, added or removed, so decoding gives the text back; what has no piece becomes
its UTF-8 bytes, a newline among them. One exception: SentencePiece writes a space as U+2581, so a
U+2581 that stands in the text comes back as a space.

BPE and not unigram, because Hugging Face's fast tokenizer breaks unigram's ties otherwise: of
42,649 texts in 500 languages and of random strings, 261 had other ids with unigram, none with BPE.
Read next: `parity.py` (fairer vocabularies), `hf_tokenizer.py` (export), `tokenizer_report.py`
(how fair it is).
"""

import hashlib
import io
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import sentencepiece

from .config import TokenizerConfig
from .errors import DataError
from .manifest import TOKENIZER_FOLDER, TOKENIZER_MODEL
from .parallel_text import Texts, parallel_texts
from .parity import train_parity
from .shards import sync_folder, write_atomically

__all__ = ["TOKENIZER_FOLDER", "Tokenizer", "sample_budgets", "train_tokenizer", "training_lines"]

PAD_ID, UNK_ID, BOS_ID, EOS_ID = 0, 1, 2, 3
SPECIAL_PIECES = ("<pad>", "<unk>", "<s>", "</s>")
META_NAME = "tokenizer_meta.json"
MINIMUM_VOCABULARY = 320
"""4 specials, 256 bytes, and room for a few characters and pieces."""
CHARACTER_COVERAGE = 0.9999
"""Share of the sample's characters that get a piece of their own, where the vocabulary has room."""
LINE_CHARACTERS = 8192
"""A longer line is cut between two words: SentencePiece's trainer gives up at 65,536."""
TRAINING_THREADS = 4
"""A constant, because SentencePiece writes it into the model file, whose hash must not change."""
_RESERVED = "\n\r\t\0\u2581\u2585"
"""A line is split at these: SentencePiece's trainer leaves out a whole line that holds one."""


class Tokenizer:
    """Text to tokens and back; `Tokenizer.load` opens a folder that `train_tokenizer` wrote."""

    pad_id, unk_id, bos_id, eos_id = PAD_ID, UNK_ID, BOS_ID, EOS_ID

    def __init__(self, model: bytes, meta: Mapping[str, Any]) -> None:
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.model = model
        """The SentencePiece model file's bytes."""
        self.meta = dict(meta)
        """How it was trained: settings, bytes a language gave, what the sample was."""
        self.sha256 = hashlib.sha256(model).hexdigest()
        self.vocab_size: int = self._processor.get_piece_size()
        self.pieces: list[str] = [self._processor.id_to_piece(i) for i in range(self.vocab_size)]
        """The surface of each token, a space written as U+2581, a byte as `<0x0A>`."""
        self.is_byte: npt.NDArray[np.bool_] = np.array(
            [self._processor.is_byte(i) for i in range(self.vocab_size)]
        )
        """[vocab_size] which tokens are a single byte."""
        self.token_bytes: npt.NDArray[np.int32] = np.array(
            [self._surface_bytes(i) for i in range(self.vocab_size)], np.int32
        )
        """[vocab_size] UTF-8 bytes of text that a token stands for; 0 for the specials."""

    @classmethod
    def load(cls, folder: Path | str) -> Self:
        """Opens a tokenizer's folder; raises DataError when it is missing, damaged or not ours."""
        folder = Path(folder)
        path = folder / TOKENIZER_MODEL
        try:
            model = path.read_bytes()
            meta = json.loads((folder / META_NAME).read_text("utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise DataError(
                f"{folder}: no tokenizer here ({TOKENIZER_MODEL} and {META_NAME}): name the folder "
                "of one that `xylem prepare` or `xylem tokenizer` trained"
            ) from None
        except (json.JSONDecodeError, UnicodeDecodeError):
            raise DataError(f"{folder / META_NAME}: not JSON: train the tokenizer again") from None
        if not isinstance(meta, dict) or hashlib.sha256(model).hexdigest() != meta.get("sha256"):
            raise DataError(
                f"{path}: damaged, or not the model that {META_NAME} describes: copy it again or "
                "train the tokenizer again"
            )
        return cls(model, meta)

    def encode(self, text: str) -> list[int]:
        """A text's tokens, without specials."""
        tokens: list[int] = self._processor.encode(text)
        return tokens

    def encode_batch(self, texts: Sequence[str], threads: int | None = None) -> list[list[int]]:
        """The tokens of many texts, by several threads (all cores by default)."""
        count = threads or os.cpu_count() or 1
        tokens: list[list[int]] = self._processor.encode(list(texts), num_threads=count)
        return tokens

    def decode(self, ids: Sequence[int] | npt.NDArray[np.integer]) -> str:
        """The text of tokens; specials give none."""
        text: str = self._processor.decode([int(i) for i in ids])
        return text

    def save(self, folder: Path) -> None:
        """Writes the folder, whole or not at all; raises DataError when something is there."""
        if folder.exists():
            raise DataError(f"{folder}: is already there: name another folder or remove it")
        staging = folder.with_name(folder.name + ".partial")
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        write_atomically(staging / TOKENIZER_MODEL, self.model)
        meta = json.dumps(self.meta | {"sha256": self.sha256}, indent=1, sort_keys=True)
        write_atomically(staging / META_NAME, (meta + "\n").encode())
        staging.rename(folder)
        sync_folder(folder.parent)

    def _surface_bytes(self, token: int) -> int:
        if self._processor.is_control(token) or self._processor.is_unknown(token):
            return 0
        if self.is_byte[token]:
            return 1
        return len(self.pieces[token].replace("\u2581", " ").encode())


def sample_budgets(sizes: Mapping[str, int], config: TokenizerConfig) -> dict[str, int]:
    """Bytes of text each language gives to the sample, out of `sizes` bytes that it has.

    Shares are proportional to bytes^(1/temperature); what a small language cannot give is shared
    among the others.
    """
    open_languages = {code for code, size in sizes.items() if size > 0}
    budgets = {code: 0 for code in sizes}
    left = min(config.sample_bytes, sum(sizes.values()))
    while open_languages and left > 0:
        weights = {code: sizes[code] ** (1 / config.temperature) for code in sorted(open_languages)}
        total = sum(weights.values())
        full = {c for c in open_languages if sizes[c] <= left * weights[c] / total}
        if not full:
            for code in open_languages:
                budgets[code] = int(left * weights[code] / total)
            break
        for code in full:
            budgets[code] = sizes[code]
            left -= sizes[code]
        open_languages -= full
    return budgets


def line_ends(rare: str = "") -> re.Pattern[str]:
    """Where a text is split for the trainer: also at rare characters, which stay bytes."""
    return re.compile(f"[{re.escape(_RESERVED + rare)}]")


def training_lines(text: str, ends: re.Pattern[str]) -> Iterator[str]:
    """A text as lines that SentencePiece's trainer takes whole: none is dropped, no word is cut.

    Only a run of more than LINE_CHARACTERS characters without a space is cut inside.
    """
    for line in ends.split(text):
        start = 0
        while len(line) - start > LINE_CHARACTERS:
            cut = line.rfind(" ", start + 1, start + LINE_CHARACTERS)
            cut = start + LINE_CHARACTERS if cut < 0 else cut
            yield line[start:cut]
            start = cut
        if start < len(line):
            yield line[start:]


def train_tokenizer(
    sample: Mapping[str, Sequence[str]],
    config: TokenizerConfig,
    folder: Path,
    *,
    parallel: Texts | None = None,
) -> Tokenizer:
    """Trains on a sample (language -> texts, see `sample_budgets`) and writes the folder.

    `parallel` are documents with equal ids in several languages that are not in the sample, for the
    fair algorithms (`config.parity`); a file named in the settings comes before them. Equal input
    gives equal tokenizers. Raises DataError: the vocabulary does not fit the sample.
    """
    check_settings(config)
    sizes: dict[str, int] = {}
    digest = hashlib.sha256()
    characters: Counter[str] = Counter()
    for code in sorted(sample):
        size = 0
        for text in sample[code]:
            data = text.encode()
            size += len(data)
            digest.update(data)
            characters.update(text)
        sizes[code] = size
    meta: dict[str, Any] = {
        "settings": training_settings(config),
        "sample_bytes": sizes,
        "sample_sha256": digest.hexdigest(),
    }
    if config.parity.algorithm == "bpe":
        rare = _rare_characters(characters, config.vocab_size)
        texts = (text for code in sorted(sample) for text in sample[code])
        ends = line_ends(rare)
        model = _train([line for text in texts for line in training_lines(text, ends)], config)
        meta |= {"characters": len(characters) - len(rare), "rare_characters": len(rare)}
    else:
        if config.parity.parallel is not None:
            parallel = parallel_texts(Path(config.parity.parallel))
        ends = line_ends()
        model, meta["parity"] = train_parity(
            sample,
            parallel or {},
            config.parity,
            vocab_size=config.vocab_size,
            specials=SPECIAL_PIECES,
            lines=lambda text: training_lines(text, ends),
        )
    tokenizer = Tokenizer(model, meta)
    if tokenizer.vocab_size < config.vocab_size:
        raise _too_little_text(config, tokenizer.vocab_size)
    tokenizer.save(folder)
    return Tokenizer.load(folder)


def check_settings(config: TokenizerConfig) -> None:
    """Raises DataError for settings that no sample can satisfy."""
    if config.vocab_size < MINIMUM_VOCABULARY:
        raise DataError(
            f"data.tokenizer.vocab_size={config.vocab_size}: 4 specials and 256 bytes need room "
            f"for pieces beside them: use {MINIMUM_VOCABULARY} or more"
        )
    for name in ("temperature", "sample_bytes"):
        if getattr(config, name) <= 0:
            raise DataError(
                f"data.tokenizer.{name}={getattr(config, name)}: use a number greater than 0"
            )


def training_settings(config: TokenizerConfig) -> dict[str, Any]:
    """The settings that decide what a sample is trained into."""
    settings = asdict(config)
    del settings["path"]
    return settings


def _rare_characters(characters: Counter[str], vocab_size: int) -> str:
    """The characters that get no piece of their own.

    At most three eighths of the vocabulary are characters: 122 languages have 4,756 in the first
    99.99 %, which left half of an 8,192 vocabulary to all words.
    """
    room = min(vocab_size * 3 // 8, (vocab_size - 260) // 2)
    total = sum(characters.values())
    ranked = sorted(characters, key=lambda character: (-characters[character], character))
    seen = 0
    for number, character in enumerate(ranked):
        if number == room or seen >= CHARACTER_COVERAGE * total:
            return "".join(ranked[number:])
        seen += characters[character]
    return ""


def _train(lines: list[str], config: TokenizerConfig) -> bytes:
    if not lines:
        raise DataError("the tokenizer's sample holds no text: put text into data.corpus")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            model_type="bpe",
            vocab_size=config.vocab_size,
            byte_fallback=True,
            character_coverage=1.0,  # `_rare_characters` decides: below 0.98 SentencePiece refuses
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            max_sentence_length=4 * LINE_CHARACTERS,
            pad_id=PAD_ID,
            unk_id=UNK_ID,
            bos_id=BOS_ID,
            eos_id=EOS_ID,
            num_threads=TRAINING_THREADS,
            minloglevel=2,
        )
    except RuntimeError as error:
        if legal := re.search(r"too high.*<= (\d+)", str(error)):
            raise _too_little_text(config, int(legal[1])) from None
        raise
    return model.getvalue()


def _too_little_text(config: TokenizerConfig, largest: int) -> DataError:
    way_out = f"use {largest} or less, or give more text"
    if largest < MINIMUM_VOCABULARY:
        way_out = f"give more text, for {MINIMUM_VOCABULARY} at least"
    return DataError(
        f"data.tokenizer.vocab_size={config.vocab_size}: the sample has text for only {largest}: "
        f"{way_out}"
    )
