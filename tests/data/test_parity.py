"""Fair vocabularies: who is compared on what, whose turn it is, and what comes of it."""

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xylem.data.bpe import word_types
from xylem.data.config import TokenizerConfig
from xylem.data.errors import DataError
from xylem.data.hf_tokenizer import hf_tokenizer
from xylem.data.parity import (
    ParityConfig,
    development_text,
    frequent_characters,
    is_development,
)
from xylem.data.tokenizer import Tokenizer, train_tokenizer

ALPHABETS = {"big_Latn": "abdeinrst", "mid_Cyrl": "абвгдежикл", "low_Deva": "कगचजतदनपबम"}
SIZES = {"big_Latn": 600, "mid_Cyrl": 80, "low_Deva": 20}
"""Lines of the sample: one large language, two small ones."""


def lines(code: str, count: int, seed: str) -> list[str]:
    """Made-up text of a language of 60 words."""
    draw = random.Random(code)
    words = ["".join(draw.choices(ALPHABETS[code], k=draw.randint(3, 8))) for _ in range(60)]
    draw = random.Random(f"{code}/{seed}")
    return [" ".join(draw.choices(words, k=12)) for _ in range(count)]


SAMPLE = {code: lines(code, size, "sample") for code, size in SIZES.items()}
PARALLEL = {
    code: {str(i): text for i, text in enumerate(lines(code, 20, "parallel"))} for code in SIZES
}
TEST = {code: "\n".join(lines(code, 30, "test")) for code in SIZES}
TINY = {"x": {"1": "a word"}, "y": {"1": "word"}}
VOCABULARY = 420


def trained(folder: Path, vocab_size: int = VOCABULARY, **parity: Any) -> Tokenizer:
    config = TokenizerConfig(vocab_size=vocab_size, parity=ParityConfig(**parity))
    return train_tokenizer(SAMPLE, config, folder / "tokenizer", parallel=PARALLEL)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    settings_: dict[str, dict[str, Any]] = {
        "bpe": {},
        "parity": {"algorithm": "parity"},
        "hybrid": {"algorithm": "parity", "global_share": 0.5},
        "global": {"algorithm": "parity", "global_share": 1.0},
        "window": {"algorithm": "parity", "window": 30, "window_factor": 1.0},
        "weighted": {"algorithm": "weighted"},
        "sharp": {"algorithm": "weighted", "sharpness": 16.0},
        "flat": {"algorithm": "weighted", "sharpness": 0.0},
    }
    return {
        name: trained(tmp_path_factory.mktemp(name), **chosen) for name, chosen in settings_.items()
    }


FAIR = ("parity", "hybrid", "global", "window", "weighted", "sharp", "flat")


def worst(tokenizer: Tokenizer) -> int:
    """Tokens of the language that needs most; every language's text says as much."""
    return max(len(tokenizer.encode(text)) for text in TEST.values())


# What comes of it


def test_the_worst_language_needs_fewer_tokens(tokenizers: dict[str, Tokenizer]) -> None:
    plain = worst(tokenizers["global"])
    assert worst(tokenizers["parity"]) < 0.85 * plain
    assert worst(tokenizers["weighted"]) < 0.85 * plain
    assert worst(tokenizers["parity"]) < worst(tokenizers["hybrid"]) < plain


def test_a_sharper_weight_helps_the_worst_language_more(tokenizers: dict[str, Tokenizer]) -> None:
    flat, usual, sharp = (worst(tokenizers[name]) for name in ("flat", "weighted", "sharp"))
    assert sharp <= usual <= flat and sharp < flat
    costs = [max(tokenizers[n].meta["parity"]["costs"].values()) for n in ("flat", "sharp")]
    assert costs[1] < costs[0]


def test_the_turns_go_to_the_languages_that_pay_most(tokenizers: dict[str, Tokenizer]) -> None:
    parity = tokenizers["parity"].meta["parity"]
    costs = parity["costs"].values()
    assert max(costs) < 1.1 * min(costs)
    assert sum(parity["turns"].values()) == VOCABULARY - 260 - parity["characters"]
    assert set(tokenizers["global"].meta["parity"]["turns"].values()) == {0}


def test_a_window_limits_one_languages_share(tmp_path: Path) -> None:
    """A text that no merge helps, as its characters are not in the sample, takes every turn."""
    parallel = {**PARALLEL, "big_Latn": {str(i): "ξψ" * 200 for i in range(20)}}
    shares = []
    for window in (0, 30):
        parity = ParityConfig(algorithm="parity", window=window, window_factor=1.0)
        config = TokenizerConfig(vocab_size=VOCABULARY, parity=parity)
        made = train_tokenizer(SAMPLE, config, tmp_path / str(window), parallel=parallel)
        turns = made.meta["parity"]["turns"]
        shares.append(turns["big_Latn"] / sum(turns.values()))
    assert shares[0] == 1.0 and shares[1] < 0.4


# It is a tokenizer like any other

TEXT = st.text(
    st.one_of(
        st.sampled_from(" \n" + "".join(ALPHABETS.values())),
        st.characters(exclude_categories=["Cs"], exclude_characters="\u2581"),
    ),
    max_size=40,
)


@settings(max_examples=60, deadline=None)
@given(text=TEXT)
def test_text_comes_back_and_hugging_face_agrees(
    tokenizers: dict[str, Tokenizer], fast: dict[str, Any], text: str
) -> None:
    for name, theirs in fast.items():
        ours = tokenizers[name]
        ids = ours.encode(text)
        assert ours.decode(ids) == text
        assert ours.token_bytes[ids].sum() == len(text.encode())
        assert theirs.encode(text, add_special_tokens=False).ids == ids


@pytest.fixture(scope="module")
def fast(tokenizers: dict[str, Tokenizer]) -> dict[str, Any]:
    return {name: hf_tokenizer(tokenizers[name]) for name in ("parity", "weighted")}


@pytest.mark.parametrize("name", FAIR)
def test_the_vocabulary_is_whole(tokenizers: dict[str, Tokenizer], name: str) -> None:
    made, plain = tokenizers[name], tokenizers["bpe"]
    assert made.vocab_size == VOCABULARY == len(set(made.pieces))
    assert made.pieces[:260] == plain.pieces[:260]
    assert made.token_bytes[:260].tolist() == plain.token_bytes[:260].tolist()
    assert made.is_byte.sum() == 256


def test_the_tokens_that_training_counted_are_the_encoders(
    tokenizers: dict[str, Tokenizer],
) -> None:
    for name in FAIR:
        for code, cost in tokenizers[name].meta["parity"]["costs"].items():
            tokens = sum(len(tokenizers[name].encode(text)) for text in PARALLEL[code].values())
            pivot = tokenizers[name].meta["parity"]["pivot"]
            content = sum(len(text.encode()) for text in PARALLEL[pivot].values())
            assert cost == pytest.approx(tokens / content, abs=1e-5)


@pytest.mark.parametrize("algorithm", ["parity", "weighted"])
def test_equal_input_gives_equal_bytes(
    tmp_path: Path, tokenizers: dict[str, Tokenizer], algorithm: str
) -> None:
    config = TokenizerConfig(vocab_size=VOCABULARY, parity=ParityConfig(algorithm=algorithm))  # type: ignore[arg-type]
    backwards = {code: SAMPLE[code] for code in reversed(SAMPLE)}
    parallel = {code: dict(reversed(PARALLEL[code].items())) for code in reversed(PARALLEL)}
    made = train_tokenizer(backwards, config, tmp_path / "t", parallel=parallel)
    assert made.model == tokenizers[algorithm].model


# What languages are compared on


def compared(parallel: Any, most_bytes: int = 10_000) -> Any:
    languages = sorted(SAMPLE)
    words = [word_types(SAMPLE[code]) for code in languages]
    return development_text(languages, words, parallel, most_bytes, lambda text: [text])


def test_each_language_is_measured_against_the_pivot() -> None:
    parallel = {
        "big_Latn": {"1": "ab" * 10, "2": "de" * 50, "3": "in"},
        "mid_Cyrl": {"1": "аб", "9": "не здесь"},
        "elsewhere": {str(i): "x" for i in range(99)},
    }
    found = compared(parallel)
    assert found.pivot == "big_Latn" and found.parallel == ("big_Latn", "mid_Cyrl")
    big, low, mid = range(3)  # in the order of their codes
    assert found.content[big] == 20 + 100 + 2 and found.content[mid] == 20
    assert found.words[mid] == Counter({"аб": 1})
    own = sum(len(text.encode()) for text in SAMPLE["low_Deva"])
    assert found.words[low] == word_types(SAMPLE["low_Deva"])
    assert found.content[low] == pytest.approx(own * (1 + 20 / 4) / 2)


def test_documents_of_most_languages_come_first() -> None:
    parallel = {
        "big_Latn": {str(i): "a" * 100 for i in range(50)} | {"all": "b" * 100},
        "mid_Cyrl": {"all": "в" * 50},
    }
    found = compared(parallel, most_bytes=100)
    assert found.words[0] == Counter({"b" * 100: 1}) and found.content == (
        100,
        found.content[1],
        100,
    )


@pytest.mark.parametrize(
    "parallel",
    [{}, {"big_Latn": {"1": "a"}}, {"x": {"1": "a"}, "big_Latn": {"1": "a"}},
     {"big_Latn": {"1": "a"}, "low_Deva": {"2": "क"}}],
)  # fmt: skip
def test_languages_that_cannot_be_compared(parallel: Any) -> None:
    with pytest.raises(
        DataError, match=r"no two languages .* in data\.tokenizer\.parity\.parallel"
    ):
        compared(parallel)


def test_a_named_file_comes_before_the_callers_documents(
    tmp_path: Path, tokenizers: dict[str, Tokenizer]
) -> None:
    path = tmp_path / "parallel.jsonl"
    rows = [
        {"lang": code, "id": each, "text": text}
        for code, by_id in PARALLEL.items()
        for each, text in by_id.items()
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    parity = ParityConfig(algorithm="weighted", parallel=str(path))
    config = TokenizerConfig(vocab_size=VOCABULARY, parity=parity)
    other = {code: {"1": "x"} for code in SAMPLE}
    made = train_tokenizer(SAMPLE, config, tmp_path / "t", parallel=other)
    assert made.model == tokenizers["weighted"].model


def test_a_fifth_of_the_documents_is_for_comparison() -> None:
    chosen = [is_development(f"document/{i}") for i in range(2000)]
    assert 0.17 < sum(chosen) / 2000 < 0.23
    assert chosen == [is_development(f"document/{i}") for i in range(2000)]


# Characters


def test_each_language_has_its_characters() -> None:
    large, small = word_types(["abcabc" * 1000 + "qz"]), word_types(["ክብር " * 10 + "ቀ"])
    assert set(frequent_characters([large, small], 0.97, 99)) == set("abcክብር▁")
    assert set(frequent_characters([large, small], 1.0, 99)) == set("abcqzክብርቀ▁")
    assert frequent_characters([large, small], 0.0, 99) == []


def test_without_room_the_most_frequent_of_any_language_come_first() -> None:
    large = word_types(["aaaaaaaabbbbcd" * 1000])
    small = word_types(["ክክክክክክብብብቀ"])
    assert frequent_characters([large, small], 1.0, 4) == ["ክ", "a", "ብ", "b"]
    assert frequent_characters([large, small], 1.0, 0) == []


def test_a_letter_brings_a_case_that_never_occurs() -> None:
    found = frequent_characters([word_types(["ᏣᎳᎩ ᎦᏬᏂᎯᏍᏗ" * 200])], 1.0, 99)
    assert {"Ꮳ", "ꮳ", "Ꭹ", "ꭹ"} <= set(found)
    both = frequent_characters([word_types(["жЖ" * 1000 + "яяя" * 1000 + "Я"])], 0.99, 99)
    assert set(both) == set("жЖя")
    assert frequent_characters([word_types(["aaa"])], 1.0, 99) == ["a"]  # "A" is a byte anyway


def test_a_character_in_bytes_may_win_a_place(tmp_path: Path) -> None:
    """Too rare for a piece from the start, it saves more than the last merges would."""
    sample = {**SAMPLE, "big_Latn": [*SAMPLE["big_Latn"], "Ꭰ Ꭱ" * 100]}
    words = [word_types(sample[code]) for code in sorted(sample)]
    assert not {"Ꭰ", "Ꭱ"} & set(frequent_characters(words, 0.98, 99))
    parity = ParityConfig(algorithm="weighted")
    config = TokenizerConfig(vocab_size=500, parity=parity)
    made = train_tokenizer(sample, config, tmp_path / "t", parallel=PARALLEL)
    assert {"Ꭰ", "Ꭱ"} <= set(made.pieces)


# What is refused


@pytest.mark.parametrize("algorithm", ["parity", "weighted"])
def test_a_vocabulary_too_large_for_the_sample(tmp_path: Path, algorithm: Any) -> None:
    with pytest.raises(DataError, match=r"vocab_size=60000: .* only (\d+): use \1 or less"):
        trained(tmp_path, 60_000, algorithm=algorithm)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("algorithm", ["parity", "weighted"])
def test_a_sample_too_small_for_any_vocabulary(tmp_path: Path, algorithm: Any) -> None:
    config = TokenizerConfig(parity=ParityConfig(algorithm=algorithm))
    with pytest.raises(DataError, match=r"only \d+: give more text, for 320 at least"):
        train_tokenizer({"x": ["a few words"], "y": ["few"]}, config, tmp_path / "t", parallel=TINY)


def test_a_sample_without_text(tmp_path: Path) -> None:
    config = TokenizerConfig(parity=ParityConfig(algorithm="parity"))
    with pytest.raises(DataError, match="the tokenizer's sample holds no text"):
        train_tokenizer({"eng_Latn": ["\n"]}, config, tmp_path / "t")


def test_a_missing_file_of_parallel_text(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.jsonl: no such file: name a JSONL file"):
        trained(tmp_path, algorithm="parity", parallel=str(tmp_path / "nowhere.jsonl"))


@pytest.mark.parametrize(
    ("parity", "problem"),
    [
        ({"global_share": 0.5}, "global_share=0.5 has no effect with algorithm=bpe: leave it out"),
        ({"window": 10}, "window=10 has no effect with algorithm=bpe"),
        ({"parallel": "x"}, "parallel=x has no effect with algorithm=bpe"),
        ({"algorithm": "weighted", "window": 10}, "window=10 has no effect with .*=weighted"),
        ({"algorithm": "parity", "global_share": 1.1}, r"global_share=1.1 must be at most 1"),
        ({"character_coverage": 1.1}, r"character_coverage=1.1 must be at most 1"),
        ({"algorithm": "parity", "global_share": -1.0}, r"global_share=-1.0 must be at least 0"),
        ({"algorithm": "parity", "window_factor": 0.5}, r"window_factor=0.5 must be at least 1"),
        ({"algorithm": "weighted", "sharpness": -1.0}, r"sharpness=-1.0 must be at least 0"),
        ({"development_bytes": 0}, r"development_bytes=0 must be at least 1"),
    ],
)
def test_settings_that_make_no_sense(parity: dict[str, Any], problem: str) -> None:
    with pytest.raises(DataError, match=rf"data\.tokenizer\.parity\.{problem}"):
        ParityConfig(**parity)
