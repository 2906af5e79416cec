"""Parity-aware byte-pair encoding: places in the vocabulary go to the languages that pay most.

Plain BPE takes the piece that saves most tokens over all text, so large languages and scripts of
one byte fare best. Two algorithms here ask instead what languages pay for the same content, on
development text that says the same in each:

- `parity` (Foroutan et al. 2025, arXiv:2508.04796): each piece is the one that saves most in the
  language that pays most now; with the paper's variants, the first pieces by plain BPE
  (`global_share`) and a limit on one language's share of the latest pieces (`window`).
- `weighted` (our own): each piece is the one with the greatest sum, over all languages, of the
  tokens that it saves relative to the content, weighted by what the language pays to the power of
  `sharpness`. It descends on the sum of the costs' powers, of which `parity` is the limit; pieces
  that several languages share count for what they are worth, so overall compression stays.

In both, beyond the paper, a character that is still spelt in bytes competes with merges for a
place. Read next: `bpe.py` (what a piece saves), `tokenizer.py`, docs/TOKENIZER.md (measured).
"""

import hashlib
import statistics
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from .bpe import LONGEST_PIECE, SPACE, WordTypes, word_types
from .errors import DataError, check_minimums
from .parallel_text import Texts
from .sentencepiece_model import BYTES, model_file

Lines = Callable[[str], Iterable[str]]
"""A text as the lines that the trainer sees."""

SMALL_CONTENT = 50_000
"""Bytes of content that a language's sample is taken to have at least: a word that is there twice
in 1 kB is no 0.2 % of the language."""
ROUNDS = 20
"""How often `weighted` asks anew what the languages pay."""
_WEIGHT_RANGE = 1_000_000
_DEVELOPMENT_SHARE = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityConfig:
    """Whose text decides which pieces the vocabulary holds."""

    algorithm: Literal["bpe", "parity", "weighted"] = "bpe"
    """SentencePiece's plain BPE; the worst language's turn; or all languages, weighted by cost."""
    parallel: str | None = None
    """Parallel text (JSONL of lang, id, text) on which the languages are compared; without it, the
    documents that languages of the corpus have in common."""
    development_bytes: int = 20_000
    """Parallel text that is taken of each language."""
    character_coverage: float = 0.98
    """Share of each language's characters that are pieces from the start, as far as three eighths
    of the vocabulary go; the others are bytes until they save more than a merge would."""
    sharpness: float = 4.0
    """`weighted`: 0 counts all languages' content alike; the larger, the more like `parity`."""
    global_share: float = 0.0
    """`parity`: share of the pieces that plain BPE chooses first (the paper's hybrid)."""
    window: int = 0
    """`parity`: latest pieces of which a language has `window_factor` equal shares at most, or
    waits; 0 is no limit."""
    window_factor: float = 2.0
    """Equal shares of the window that one language may have."""

    def __post_init__(self) -> None:
        check_minimums(
            self, "data.tokenizer.parity",
            development_bytes=1, character_coverage=0, sharpness=0, global_share=0, window=0,
            window_factor=1,
        )  # fmt: skip
        for name in ("global_share", "character_coverage"):
            if getattr(self, name) > 1:
                raise DataError(
                    f"data.tokenizer.parity.{name}={getattr(self, name)} must be at most 1: it is "
                    "a share"
                )
        unused: dict[str, object] = {}
        if self.algorithm != "parity":
            unused |= {"global_share": self.global_share, "window": self.window}
        if self.algorithm == "bpe":
            unused |= {"parallel": self.parallel}
        for name, value in unused.items():
            if value:
                raise DataError(
                    f"data.tokenizer.parity.{name}={value} has no effect with algorithm="
                    f"{self.algorithm}: leave it out, or set data.tokenizer.parity.algorithm=parity"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Development:
    """On what the languages' costs are compared."""

    words: tuple[Counter[str], ...]
    """[languages] the words whose tokens are counted."""
    content: tuple[float, ...]
    """[languages] how much they say: bytes of the same documents in the pivot language."""
    pivot: str
    """The language that has most documents."""
    parallel: tuple[str, ...]
    """The languages that share documents with the pivot; others are taken to be average."""


def is_development(document_id: str) -> bool:
    """Whether a document of the corpus is kept from the sample to compare languages on.

    Equal ids fall on the same side in every language. What a small language has learnt by heart
    would make it look cheap.
    """
    return int.from_bytes(_keyed(document_id)) < _DEVELOPMENT_SHARE * 2**64


def train_parity(
    sample: Mapping[str, Sequence[str]],
    parallel: Texts,
    config: ParityConfig,
    *,
    vocab_size: int,
    specials: Sequence[str],
    lines: Lines,
) -> tuple[bytes, dict[str, Any]]:
    """Trains by `config.algorithm`.

    Args:
        sample: language -> texts to learn from.
        parallel: texts to compare languages on.
        config: how.
        vocab_size: tokens, with specials and 256 bytes.
        specials: the surfaces of pad, unk, bos and eos.
        lines: cuts a text into the lines that are learnt from.

    Returns:
        The bytes of a SentencePiece model file, with fewer tokens where the sample has no text for
        more; and what to tell about it: `pivot` and `parallel`
        (which languages were compared), `costs` (tokens a byte of content at the end), `turns`
        (pieces that each language chose), `characters`.

    Raises:
        DataError: the sample has no text, or no two of its languages are parallel.
    """
    languages = sorted(code for code, texts in sample.items() if any(texts))
    words = [word_types(line for text in sample[c] for line in lines(text)) for c in languages]
    if not any(words):
        raise DataError("the tokenizer's sample holds no text: put text into data.corpus")
    development = development_text(languages, words, parallel, config.development_bytes, lines)
    room = vocab_size - len(specials) - len(BYTES)
    characters = frequent_characters(words, config.character_coverage, most=room * 3 // 8)
    types = WordTypes(words, development.words, characters)
    if config.algorithm == "weighted":
        turns = _by_weight(types, _contents(words, development), development, config, room)
    else:
        turns = _by_turns(types, development, config, room)
    often: Counter[str] = Counter()
    for counts in words:
        often.update(_characters(counts))
    merged = sorted((p for p in types.ranks if len(p) > 1), key=types.ranks.__getitem__)
    single = sorted((p for p in types.ranks if len(p) == 1), key=lambda p: (-often[p], p))
    costs = _costs(types, development)
    return model_file(merged, single, specials=specials, longest=LONGEST_PIECE), {
        "pivot": development.pivot,
        "parallel": list(development.parallel),
        "costs": {code: round(costs[i], 5) for i, code in enumerate(languages)},
        "turns": {code: turns[i] for i, code in enumerate(languages)},
        "characters": len(single),
    }


def _by_turns(
    types: WordTypes, development: Development, config: ParityConfig, pieces: int
) -> Counter[int]:
    """Each piece for the language that pays most; returns how many each language chose."""
    for _ in range(int((pieces - len(types.ranks)) * config.global_share)):
        if (piece := types.best(0)) is None:
            break
        types.add(piece)
    content, tokens = development.content, types.tokens
    types.regroup(range(len(content)))
    going = set(range(len(content)))
    turns: Counter[int] = Counter()
    lately: deque[int] = deque()
    share: Counter[int] = Counter()
    while len(types.ranks) < pieces and going:
        limit = max(1.0, config.window_factor * config.window / len(going))
        eager = [i for i in going if share[i] < limit] if config.window else going
        worst = max(eager or going, key=lambda i: (tokens[i] / content[i], -i))
        if (piece := types.best(worst)) is None:
            going.discard(worst)  # nothing in its sample is there twice
            continue
        types.add(piece)
        turns[worst] += 1
        if config.window:
            lately.append(worst)
            share[worst] += 1
            if len(lately) > config.window:
                share[lately.popleft()] -= 1
    return turns


def _by_weight(
    types: WordTypes,
    contents: Sequence[float],
    development: Development,
    config: ParityConfig,
    pieces: int,
) -> Counter[int]:
    """Each piece for all languages, weighted by what they pay; no language has turns."""
    first = len(types.ranks)
    for number in range(1, ROUNDS + 1):
        costs = _costs(types, development)
        weights = [
            cost**config.sharpness / content for cost, content in zip(costs, contents, strict=True)
        ]
        unit = max(weights) / _WEIGHT_RANGE
        types.regroup([0] * len(weights), [max(1, round(weight / unit)) for weight in weights])
        while len(types.ranks) < first + (pieces - first) * number // ROUNDS:
            if (piece := types.best(0)) is None:
                return Counter()
            types.add(piece)
    return Counter()


def development_text(
    languages: Sequence[str],
    words: Sequence[Counter[str]],
    parallel: Texts,
    most_bytes: int,
    lines: Lines,
) -> Development:
    """The text on which each language is measured, and how much that text says.

    A language that shares documents with the pivot is measured on those, against the pivot's bytes;
    another one on its sample, against its own bytes and the median ratio of the former. Documents
    that most languages have come first, up to `most_bytes` of a language. (Bytes a token instead of
    parallel text would be no substitute: it made the Gini coefficient worse than plain BPE's.)

    Raises:
        DataError: no two languages share a document.
    """
    texts = {code: parallel[code] for code in languages if parallel.get(code)}
    pivot = max(texts, key=lambda code: len(texts[code]), default="")
    reference = texts.get(pivot, {})
    spread = Counter(each for by_id in texts.values() for each in by_id if each in reference)
    ranked = sorted(spread, key=lambda each: (-spread[each], _keyed(each)))
    measured: dict[str, tuple[Counter[str], float, float]] = {}
    for code, by_id in texts.items():
        counts: Counter[str] = Counter()
        own = content = 0
        for each in (each for each in ranked if each in by_id):
            if own < most_bytes:
                counts.update(word_types(lines(by_id[each])))
                own += len(by_id[each].encode())
                content += len(reference[each].encode())
        if counts:
            measured[code] = counts, content, content / own
    if len(measured) < 2:
        raise DataError(
            "data.tokenizer.parity: no two languages of the sample have a document in common to be "
            "compared on: name a file of parallel text in data.tokenizer.parity.parallel, or use "
            "algorithm=bpe"
        )
    compared = tuple(measured)
    usual = statistics.median(ratio for *_, ratio in measured.values())
    for code, counts in zip(languages, words, strict=True):
        measured.setdefault(code, (counts, _bytes(counts) * usual, usual))
    return Development(
        words=tuple(measured[code][0] for code in languages),
        content=tuple(measured[code][1] for code in languages),
        pivot=pivot,
        parallel=compared,
    )


def frequent_characters(words: Sequence[Counter[str]], coverage: float, most: int) -> list[str]:
    """The characters that are pieces from the start: so large a share of every language's text.

    Where there is no room for all, those come first that are most frequent in some language. A
    letter whose other case never occurs brings that with it: Cherokee's Bible is in capitals, and
    three bytes a letter are what its small letters would cost.
    """
    shares: dict[str, float] = {}
    needed: set[str] = set()
    for counts in words:
        characters = _characters(counts)
        total, seen = characters.total(), 0
        for character, count in sorted(characters.items(), key=lambda item: (-item[1], item[0])):
            if seen < coverage * total:
                needed.add(character)
            seen += count
            shares[character] = max(shares.get(character, 0.0), count / total)
    for character in sorted(needed):
        other = character.swapcase()
        if len(other) == 1 and len(other.encode()) > 1 and other not in shares:
            needed.add(other)
            shares[other] = shares[character]
    return sorted(needed, key=lambda character: (-shares[character], character))[: max(most, 0)]


def _contents(words: Sequence[Counter[str]], development: Development) -> list[float]:
    """[languages] what the sample of each says, in bytes of content; at least SMALL_CONTENT."""
    measured = zip(words, development.words, development.content, strict=True)
    return [
        max(SMALL_CONTENT, _bytes(counts) * content / _bytes(own))
        for counts, own, content in measured
    ]


def _costs(types: WordTypes, development: Development) -> list[float]:
    """[languages] tokens a byte of content."""
    return [t / content for t, content in zip(types.tokens, development.content, strict=True)]


def _characters(words: Counter[str]) -> Counter[str]:
    characters: Counter[str] = Counter()
    for word, count in words.items():
        for character in word:
            characters[character] += count
    return characters


def _bytes(words: Counter[str]) -> int:
    """UTF-8 bytes of words, a space being one."""
    return sum(len(word.replace(SPACE, " ").encode()) * count for word, count in words.items())


def _keyed(document_id: str) -> bytes:
    return hashlib.blake2b(document_id.encode(), digest_size=8, key=b"development").digest()
