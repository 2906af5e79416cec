"""Byte-pair encoding, one piece at a time: what would a piece save, and in which language?

A word type (a word, and how often each language has it) is kept as the symbols into which
SentencePiece's encoder cuts it with the pieces so far. What may become a piece next is the text of
two neighbouring symbols, or a character that is still spelt in bytes; its gain is the tokens that
it saves. Gains are kept for each group of languages, so that `parity.py` may ask for the best
piece of one language, or of all. Adding a piece touches only the words that hold it.

Pieces keep SentencePiece's own limits: 16 characters, one script, digits alone, spaces in front.
Read next: `parity.py` (whose turn it is), `sentencepiece_model.py` (the model file).
"""

import heapq
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise

from fontTools import unicodedata  # type: ignore[import-untyped]

SPACE = "\u2581"
"""How SentencePiece writes a space."""
LONGEST_PIECE = 16
"""Characters of a piece at most."""
LEAST_GAIN = 2
"""Tokens of the sample that a piece saves at least: what occurs once is not worth a place."""

_SPACED = re.compile(r" *[^ ]+| +")
_RUNS = re.compile(r"D|_*M*([^_DM])(?:\1|M)*|_*M+|_+")


class _Classes(dict[int, str]):
    """Character -> `_` (space), `D` (digit), `M` (a mark of any script), or one letter a script."""

    def __init__(self) -> None:
        super().__init__()
        self._scripts: dict[str, str] = {"Hira": "\ue000", "Kana": "\ue000", "Hani": "\ue000"}

    def __missing__(self, code: int) -> str:
        character = chr(code)
        script = unicodedata.script(character)
        if character == SPACE:
            letter = "_"
        elif unicodedata.category(character) == "Nd":
            letter = "D"
        elif script == "Zinh":
            letter = "M"
        elif character == "\u30fc":  # Japanese's long vowel, of no script of its own
            letter = self._scripts["Kana"]
        else:
            letter = self._scripts.setdefault(script, chr(0xE001 + len(self._scripts)))
        self[code] = letter
        return letter


_CLASSES = _Classes()


def word_types(lines: Iterable[str]) -> Counter[str]:
    """Word -> how often it occurs.

    A word is what no piece reaches out of: a run of one script, digit by digit, with the spaces in
    front of it as U+2581.
    """
    spaced: Counter[str] = Counter()
    for line in lines:
        spaced.update(_SPACED.findall(line))
    words: Counter[str] = Counter()
    for text, count in spaced.items():
        text = text.replace(" ", SPACE)
        classes = text.translate(_CLASSES)
        for run in _RUNS.finditer(classes):
            words[text[run.start() : run.end()]] += count
    return words


class WordTypes:
    """The words of several languages, cut into the pieces known so far."""

    def __init__(
        self,
        sample: Sequence[Mapping[str, int]],
        development: Sequence[Mapping[str, int]],
        characters: Iterable[str],
    ) -> None:
        """Cuts every word into characters.

        Args:
            sample: [languages] word -> occurrences, to learn from.
            development: [languages] word -> occurrences, only counted in `tokens`.
            characters: pieces from the start.
        """
        self.ranks: dict[str, int] = {character: -1 for character in characters}
        """Piece -> its rank; single characters, which need no merge, have -1."""
        self.tokens: list[int] = [0] * len(development)
        """[languages] tokens of the development text, with the pieces so far."""
        self._spelt: dict[str, int] = {}  # character without a piece -> its bytes
        self._learnt: list[list[int]] = []  # word -> language, count, language, count, ...
        self._counted: list[list[int]] = []
        self._symbols: list[list[str]] = []
        numbers: dict[str, int] = {}
        known: dict[str, str] = {}
        for owners, counts in ((self._learnt, sample), (self._counted, development)):
            for language, words in enumerate(counts):
                for word, count in words.items():
                    number = numbers.setdefault(word, len(numbers))
                    if number == len(self._symbols):
                        self._symbols.append([known.setdefault(c, c) for c in word])
                        self._learnt.append([])
                        self._counted.append([])
                    owners[number] += (language, count)
        self._spelt = {c: len(c.encode()) for c in known if c not in self.ranks}
        for symbols, counted in zip(self._symbols, self._counted, strict=True):
            if counted:
                size = sum(self._spelt.get(symbol, 1) for symbol in symbols)
                for language, count in _pairs(counted):
                    self.tokens[language] += size * count
        self._held = [self._candidates(symbols) for symbols in self._symbols]
        self._words: dict[str, list[int]] = {}  # candidate -> the words that have held it
        for index, candidates in enumerate(self._held):
            for candidate in candidates:
                self._words.setdefault(candidate, []).append(index)
        self.regroup([0] * len(sample))

    def regroup(self, groups: Sequence[int], weights: Sequence[int] | None = None) -> None:
        """Counts gains anew.

        Args:
            groups: [languages] the group of each language, numbered from 0.
            weights: [languages] what a token saved in each is worth; 1 by default.
        """
        worth = [1] * len(groups) if weights is None else weights
        self._groups, self._worth = list(groups), list(worth)
        self._least = LEAST_GAIN * min(worth, default=1)
        self._gains: list[dict[str, int]] = [{} for _ in range(max(groups, default=-1) + 1)]
        for candidates, learnt in zip(self._held, self._learnt, strict=True):
            for language, count in _pairs(learnt):
                gains, gain = self._gains[groups[language]], count * worth[language]
                for candidate in candidates:
                    gains[candidate] = gains.get(candidate, 0) + gain
        self._heaps = [
            [(-gain, candidate) for candidate, gain in gains.items() if gain >= self._least]
            for gains in self._gains
        ]
        for heap in self._heaps:
            heapq.heapify(heap)

    def best(self, group: int) -> str | None:
        """The candidate with most gain for a group, the first in code order of equals.

        None when nothing saves `LEAST_GAIN` tokens of the sample.
        """
        heap, gains = self._heaps[group], self._gains[group]
        while heap:
            gain, candidate = heap[0]
            now = gains.get(candidate, 0)
            if now == -gain:
                return candidate
            heapq.heappop(heap)
            if self._least <= now < -gain:
                heapq.heappush(heap, (-now, candidate))
        return None

    def add(self, piece: str) -> None:
        """Makes a candidate a piece: every word is cut anew as the encoder would."""
        words = self._words.pop(piece)
        grown: list[set[str]] = [set() for _ in self._gains]
        size = self._spelt.get(piece)
        if size is None:
            self.ranks[piece] = len(self.ranks)
        else:
            self.ranks[piece] = -1
            del self._spelt[piece]
        for word in dict.fromkeys(words):  # a word that holds it twice is listed twice
            symbols = self._symbols[word]
            if size is None:
                cut = self._merge(symbols, piece)
                saved = len(symbols) - len(cut)
                if not saved:
                    continue
                self._symbols[word] = symbols = cut
            else:
                saved = (size - 1) * symbols.count(piece)
            for language, count in _pairs(self._counted[word]):
                self.tokens[language] -= saved * count
            self._change(word, self._candidates(symbols), grown)
        for gains, heap, candidates in zip(self._gains, self._heaps, grown, strict=True):
            for candidate in candidates:
                gain = gains.get(candidate, 0)
                if gain >= self._least:
                    heapq.heappush(heap, (-gain, candidate))

    def cut(self) -> Iterator[tuple[str, list[str]]]:
        """Each word and its symbols; a character without a piece stands for its bytes."""
        for symbols in self._symbols:
            yield "".join(symbols), symbols

    def _candidates(self, symbols: Sequence[str]) -> list[str]:
        """What might be the next piece, once for every token that it would save here."""
        spelt = self._spelt
        found: list[str] = []
        for left, right in pairwise(symbols):
            text = left + right
            if len(text) <= LONGEST_PIECE and left not in spelt and right not in spelt:
                if text[1] == SPACE and text.strip(SPACE):
                    continue  # spaces in front of a word are a piece, or one of them is its head
                found.append(text)
        if not spelt.keys().isdisjoint(symbols):
            for symbol in symbols:
                found += [symbol] * (spelt.get(symbol, 1) - 1)
        return found

    @staticmethod
    def _merge(symbols: Sequence[str], piece: str) -> list[str]:
        """The symbols with a new piece, from left to right: what the encoder makes of them.

        The encoder might next merge neighbours whose text is an older piece. There are none: text
        between two bounds of a cut is cut as if it stood alone, and a piece alone is one symbol.
        """
        cut = list(symbols)
        at = 0
        while at < len(cut) - 1:
            if cut[at] + cut[at + 1] == piece:
                cut[at : at + 2] = [piece]
            at += 1
        return cut

    def _change(self, word: int, new: list[str], grown: Sequence[set[str]]) -> None:
        """Moves a word's gains from the candidates that it held to its new ones."""
        old, self._held[word] = self._held[word], new
        start, end = 0, min(len(old), len(new))
        while start < end and old[start] == new[start]:
            start += 1
        tail, end = 0, end - start
        while tail < end and old[-1 - tail] == new[-1 - tail]:
            tail += 1
        gone, come = old[start : len(old) - tail], new[start : len(new) - tail]
        for candidate in come:
            self._words.setdefault(candidate, []).append(word)
        for language, count in _pairs(self._learnt[word]):
            group = self._groups[language]
            gains, gain = self._gains[group], count * self._worth[language]
            for candidate in gone:
                left = gains[candidate] - gain
                if left:
                    gains[candidate] = left
                else:
                    del gains[candidate]
            for candidate in come:
                gains[candidate] = gains.get(candidate, 0) + gain
            grown[group].update(come)


def _pairs(owners: Sequence[int]) -> Iterator[tuple[int, int]]:
    return zip(owners[::2], owners[1::2], strict=True)
