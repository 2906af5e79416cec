"""What the encoder cuts, the trainer cuts; and a piece's gain is what it saves."""

import io
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from xylem.data.bpe import LEAST_GAIN, LONGEST_PIECE, WordTypes, word_types
from xylem.data.sentencepiece_model import BYTES, model_file

SPECIALS = ("<pad>", "<unk>", "<s>", "</s>")
WORDS = st.dictionaries(
    st.one_of(
        st.text(alphabet, min_size=1, max_size=9)
        for alphabet in ("ab", "an", "aab", "人生命", "ab\u0301")
    ),
    st.integers(1, 5),
    min_size=1,
    max_size=12,
)


def encoder(types: WordTypes) -> sentencepiece.SentencePieceProcessor:
    merged = sorted((p for p in types.ranks if len(p) > 1), key=types.ranks.__getitem__)
    single = [p for p in types.ranks if len(p) == 1]
    model = model_file(merged, single, specials=SPECIALS, longest=LONGEST_PIECE)
    return sentencepiece.SentencePieceProcessor(model_proto=model)


def spelt(symbols: Sequence[str], types: WordTypes) -> list[str]:
    """A cut as the encoder writes it: a character without a piece is its bytes."""
    return [
        part
        for symbol in symbols
        for part in ([symbol] if symbol in types.ranks else [BYTES[b] for b in symbol.encode()])
    ]


def all_gains(types: WordTypes, counts: Mapping[str, int]) -> Counter[str]:
    """What every candidate would save, counted from nothing."""
    gains: Counter[str] = Counter()
    for word, symbols in types.cut():
        for symbol in symbols:
            if symbol not in types.ranks:
                gains[symbol] += (len(symbol.encode()) - 1) * counts[word]
        for left, right in pairwise(symbols):
            if left in types.ranks and right in types.ranks and len(left + right) <= LONGEST_PIECE:
                gains[left + right] += counts[word]
    return +gains


@settings(max_examples=200, deadline=None)
@given(words=WORDS, seed=st.integers(0, 9))
def test_words_are_cut_as_sentencepiece_cuts_them(words: dict[str, int], seed: int) -> None:
    """Whatever candidate is taken next, the best or not."""
    draw = random.Random(seed)
    types = WordTypes([words], [words], "abn")
    for _ in range(30):
        candidates = sorted(all_gains(types, words))
        if not candidates:
            break
        types.add(draw.choice(candidates))
        processor = encoder(types)
        for word, symbols in types.cut():
            assert processor.encode(word, out_type=str) == spelt(symbols, types)
        tokens = sum(len(processor.encode(word)) * count for word, count in words.items())
        assert types.tokens == [tokens]


@settings(max_examples=100, deadline=None)
@given(words=WORDS)
def test_the_best_piece_is_the_one_that_saves_most(words: dict[str, int]) -> None:
    types = WordTypes([words], [], "abn")
    for _ in range(30):
        gains = all_gains(types, words)
        most = max(gains.values(), default=0)
        best = types.best(0)
        if most < LEAST_GAIN:
            assert best is None
            return
        assert best == min(piece for piece, gain in gains.items() if gain == most)
        types.add(best)


@settings(max_examples=50, deadline=None)
@given(one=WORDS, other=WORDS, weights=st.tuples(st.integers(1, 9), st.integers(1, 9)))
def test_gains_are_weighted_and_grouped(
    one: dict[str, int], other: dict[str, int], weights: tuple[int, int]
) -> None:
    types = WordTypes([one, other], [], "abn")
    for _ in range(3):
        if (piece := types.best(0)) is not None:
            types.add(piece)
    types.regroup([0, 0], weights)
    both = {
        word: one.get(word, 0) * weights[0] + other.get(word, 0) * weights[1]
        for word in {**one, **other}
    }
    for groups, counts, group in (([0, 0], both, 0), ([0, 1], other, 1)):
        types.regroup(groups, weights if group == 0 else None)
        gains = all_gains(types, {**dict.fromkeys(both, 0), **counts})
        best = types.best(group)
        least = LEAST_GAIN * (min(weights) if group == 0 else 1)
        most = max(gains.values(), default=0)
        assert (best is None) == (most < least)
        assert best is None or gains[best] == most


def test_a_character_in_bytes_competes_with_merges() -> None:
    types = WordTypes([{"生": 3, "ab": 5}], [{"生ab": 1}], "ab")
    assert types.tokens == [5]
    assert types.best(0) == "生"  # 3 x 2 bytes saved, against 5
    types.add("生")
    assert types.tokens == [3] and types.best(0) == "ab"


def test_what_occurs_once_is_no_piece() -> None:
    assert WordTypes([{"ab": 1}], [], "ab").best(0) is None
    assert WordTypes([{"ab": 2}], [], "ab").best(0) == "ab"


def test_no_piece_is_longer_than_sixteen_characters() -> None:
    types = WordTypes([{"ab" * 20: 9}], [], "ab")
    while (piece := types.best(0)) is not None:
        types.add(piece)
    assert max(map(len, types.ranks)) == LONGEST_PIECE


def test_spaces_are_one_piece_or_in_front_of_a_word() -> None:
    types = WordTypes([word_types(["a   b" * 5] * 9)], [], "ab\u2581")
    while (piece := types.best(0)) is not None:
        types.add(piece)
    spaced = {piece for piece in types.ranks if "\u2581" in piece}
    assert {"\u2581\u2581", "\u2581ba"} <= spaced
    assert all(p.lstrip("\u2581") in ("", p[1:]) for p in spaced)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("the cat, the", ["the", "\u2581cat", ",", "\u2581the"]),
        ("in 1948", ["in", "\u2581", "1", "9", "4", "8"]),
        ("мир-world", ["мир", "-", "world"]),
        ("日本語のカード ok", ["日本語のカード", "\u2581ok"]),
        ("e\u0301te\u0301 \u0301a", ["e\u0301te\u0301", "\u2581\u0301a"]),
        ("a  b ", ["a", "\u2581\u2581b", "\u2581"]),
        ("हिन्दी।", ["हिन्दी", "।"]),
        ("", []),
    ],
)
def test_words_are_runs_of_one_script(line: str, words: list[str]) -> None:
    assert word_types([line]) == Counter(words)


def test_plain_merges_compress_like_sentencepieces_own() -> None:
    draw = random.Random(1)
    vocabulary = ["".join(draw.choices("aeiouknst", k=draw.randint(2, 9))) for _ in range(200)]
    weights = [1 / (rank + 1) for rank in range(200)]
    lines = [" ".join(draw.choices(vocabulary, weights, k=20)) for _ in range(300)]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, model_type="bpe", vocab_size=600,
        byte_fallback=True, character_coverage=1.0, normalization_rule_name="identity",
        add_dummy_prefix=False, remove_extra_whitespaces=False, minloglevel=2,
        allow_whitespace_only_pieces=True, split_digits=True, pad_id=0, unk_id=1, bos_id=2,
        eos_id=3,
    )  # fmt: skip
    theirs = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    words = word_types(lines)
    types = WordTypes([words], [words], "aeiouknst\u2581")
    while len(types.ranks) < 600 - 260:
        piece = types.best(0)
        assert piece is not None
        types.add(piece)
    tokens = sum(len(theirs.encode(line)) for line in lines)
    assert types.tokens[0] == pytest.approx(tokens, rel=0.003)
    assert sum(len(encoder(types).encode(line)) for line in lines) == types.tokens[0]
