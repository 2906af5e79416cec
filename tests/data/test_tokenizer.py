"""The tokenizer loses nothing, drops nothing it should learn, and is the same in Hugging Face."""

import gzip
import json
import os
import pickle
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from xylem.data import tokenizer as tokenizer_module
from xylem.data.config import TokenizerConfig
from xylem.data.errors import DataError
from xylem.data.hf_tokenizer import export_hf_tokenizer, hf_tokenizer
from xylem.data.tokenizer import (
    LINE_CHARACTERS,
    SPECIAL_PIECES,
    Tokenizer,
    line_ends,
    sample_budgets,
    train_tokenizer,
    training_lines,
)
from xylem.data.tokenizer_report import (
    fairness,
    gini,
    parallel_texts,
    report_json,
    report_table,
    tokenizer_report,
)

SHARED = Path(os.environ.get("XYLEM_SHARED", Path(__file__).resolve().parents[2].parent / "shared"))

SENTENCES = {
    "eng_Latn": "All human beings are born free and equal in dignity and rights in 1948.",
    "fin_Latn": "Kaikki ihmiset syntyvät vapaina ja tasavertaisina arvoltaan ja oikeuksiltaan.",
    "swh_Latn": "Watu wote wamezaliwa huru, hadhi na haki zao ni sawa.",
    "hin_Deva": "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता प्राप्त है।",
    "amh_Ethi": "የሰው ልጅ ሁሉ ሲወለድ ነጻና በክብርና በመብትም እኩልነት ያለው ነው።",
    "zho_Hans": "人人生而自由,在尊严和权利上一律平等。他们赋有理性和良心。",
    "arb_Arab": "يولد جميع الناس أحرارا متساوين في الكرامة والحقوق.",
}
AWKWARD = (
    *(
        "",
        " ",
        "  a   b ",
        "\n",
        "a\n\n\nb",
        "\t\tx\t",
        "a\r\nb",
        "\x00",
        "\u2585",
        "\ufeffx",
        "\ufffd",
    ),
    *(
        "e\u0301 \u00e9",
        "\U0001f468\u200d\U0001f469\u200d\U0001f467",
        "\u2028",
        "\u00a0",
        "1234567890",
    ),
    *("<s>", "</s> <unk> <pad>", "<0x0A>", "<s>struck out</s>", "-" * 50, "banana ananas nanana"),
)


def words(sentence: str, count: int, seed: int) -> str:
    """Text of the sentence's words in a seeded order, several to a line."""
    generator = random.Random(seed)
    vocabulary = sentence.split() if " " in sentence else list(sentence)
    glue = " " if " " in sentence else ""
    lines = (glue.join(generator.choices(vocabulary, k=12)) for _ in range(count))
    return "\n".join(lines)


SAMPLE = {code: [words(sentence, 200, 1)] for code, sentence in SENTENCES.items()}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer") / "small"
    return train_tokenizer(SAMPLE, TokenizerConfig(vocab_size=700), folder)


@pytest.fixture(scope="module")
def real_texts() -> list[str]:
    """Every article of the Universal Declaration in some 500 versions, and a few long documents."""
    declaration = SHARED / "data" / "parallel" / "udhr.jsonl.gz"
    if not declaration.exists():
        pytest.skip(f"no parallel text at {declaration}")
    with gzip.open(declaration, "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in lines]
    for path in sorted((SHARED / "data" / "corpora").glob("*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            texts.append(json.loads(next(lines))["text"])
    return texts


@pytest.fixture(scope="module")
def real_tokenizer(real_texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer") / "real"
    sample = {"all": [text for text in real_texts if "\u2581" not in text][::7]}
    return train_tokenizer(sample, TokenizerConfig(vocab_size=4096), folder)


# Nothing is lost


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581"), max_size=60)


@settings(max_examples=300, deadline=None)
@given(text=TEXT)
def test_decoding_gives_any_text_back(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("text", AWKWARD)
def test_decoding_gives_awkward_text_back(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(np.array([tokenizer.bos_id, *ids, tokenizer.eos_id])) == text
    assert not set(ids) & {tokenizer.pad_id, tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id}


def test_the_exception_u2581_comes_back_as_a_space(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode("a\u2581b")) == "a b"


@settings(max_examples=200, deadline=None)
@given(text=TEXT)
def test_token_bytes_sum_to_the_texts_bytes(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.token_bytes[tokenizer.encode(text)].sum() == len(text.encode())


def test_token_bytes_of_specials_bytes_and_spaces(tokenizer: Tokenizer) -> None:
    assert tokenizer.token_bytes.dtype == np.int32
    assert tokenizer.token_bytes[:4].tolist() == [0, 0, 0, 0]
    assert tokenizer.token_bytes[tokenizer.pieces.index("<0x0A>")] == 1
    assert tokenizer.token_bytes[tokenizer.pieces.index("\u2581")] == 1
    assert tuple(tokenizer.pieces[:4]) == SPECIAL_PIECES
    assert tokenizer.is_byte.sum() == 256


def test_real_text_comes_back(real_tokenizer: Tokenizer, real_texts: list[str]) -> None:
    encoded = real_tokenizer.encode_batch(real_texts, threads=1)
    for text, ids in zip(real_texts, encoded, strict=True):
        assert "\u2581" in text or real_tokenizer.decode(ids) == text


def test_a_batch_is_encoded_like_each_of_its_texts(tokenizer: Tokenizer) -> None:
    texts = [*AWKWARD, *SENTENCES.values()]
    assert tokenizer.encode_batch(texts, threads=2) == [tokenizer.encode(text) for text in texts]


def test_digits_stand_alone(tokenizer: Tokenizer) -> None:
    assert not any(sum(c.isdigit() for c in p) > 1 for p in tokenizer.pieces if p[0] != "<")


def test_a_tokenizer_can_be_pickled(tokenizer: Tokenizer) -> None:
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.sha256 == tokenizer.sha256
    assert copy.encode(SENTENCES["hin_Deva"]) == tokenizer.encode(SENTENCES["hin_Deva"])


# Everything in the sample is learnt from


def pieces_of(tmp_path: Path, sample: list[str], word: str, vocab_size: int = 400) -> list[str]:
    config = TokenizerConfig(vocab_size=vocab_size)
    tokenizer = train_tokenizer({"x": sample}, config, tmp_path / "t")
    return [tokenizer.pieces[i] for i in tokenizer.encode(f" {word}")]


ENGLISH = words(SENTENCES["eng_Latn"], 300, 2)


def test_a_line_of_20_kb_in_a_three_byte_script_is_learnt_from(tmp_path: Path) -> None:
    line = " ".join(random.Random(3).choices(SENTENCES["amh_Ethi"].split(), k=2000))
    assert "\n" not in line and len(line.encode()) > 20_000
    assert pieces_of(tmp_path, [ENGLISH, line], "እኩልነት") == ["▁እኩልነት"]


def test_the_far_end_of_a_line_longer_than_a_cut_is_learnt_from(tmp_path: Path) -> None:
    line = " ".join(["the"] * LINE_CHARACTERS + ["እኩልነት"] * 300)
    assert pieces_of(tmp_path, [ENGLISH, line], "እኩልነት") == ["▁እኩልነት"]


def test_a_line_of_200_kb_without_a_space_is_learnt_from(tmp_path: Path) -> None:
    line = "".join(random.Random(4).choices(["人人", "生而", "自由", "平等"], k=34_000))
    assert len(line.encode()) > 200_000
    assert pieces_of(tmp_path, [ENGLISH, line], "自由")[-1] == "自由"


@pytest.mark.parametrize("character", ["\t", "\u2585", "\0", "\r"])
def test_a_line_with_a_reserved_character_is_learnt_from(tmp_path: Path, character: str) -> None:
    line = f" እኩልነት{character} እኩልነት\n" * 100
    assert pieces_of(tmp_path, [ENGLISH, line], "እኩልነት") == ["▁እኩልነት"]


@settings(max_examples=100, deadline=None)
@given(text=st.text("ab \n\tየሰ", max_size=200), limit=st.integers(3, 20))
def test_training_lines_hold_every_character(text: str, limit: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer_module, "LINE_CHARACTERS", limit)
        lines = list(training_lines(text, line_ends()))
    assert "".join(lines) == text.replace("\n", "").replace("\t", "")
    assert all(0 < len(line) <= limit for line in lines)


def test_training_lines_are_cut_between_words() -> None:
    line = " ".join(f"word{n}" for n in range(LINE_CHARACTERS))
    found = [word for part in training_lines(line, line_ends()) for word in part.split()]
    assert found == line.split()


def test_a_thousand_rare_characters_leave_room_for_words(tmp_path: Path) -> None:
    rare = "".join(chr(0x4E00 + n) for n in range(1500))
    config = TokenizerConfig(vocab_size=1000)
    tokenizer = train_tokenizer({"x": [ENGLISH, rare, rare]}, config, tmp_path / "t")
    assert sum(len(piece) == 1 for piece in tokenizer.pieces) <= 376
    assert "\u2581human" in tokenizer.pieces
    assert tokenizer.decode(tokenizer.encode(rare)) == rare
    assert tokenizer.meta["characters"] <= 375


# The sample


def test_budgets_follow_the_temperature() -> None:
    sizes = {"a": 8_000_000, "b": 1_000_000, "c": 0}
    config = TokenizerConfig(temperature=3.0, sample_bytes=300_000)
    assert sample_budgets(sizes, config) == {"a": 200_000, "b": 100_000, "c": 0}
    config = TokenizerConfig(temperature=1.0, sample_bytes=900_000)
    assert sample_budgets(sizes, config) == {"a": 800_000, "b": 100_000, "c": 0}


def test_what_a_small_language_cannot_give_the_others_do() -> None:
    budgets = sample_budgets(
        {"a": 10**9, "b": 10**9, "c": 500}, TokenizerConfig(sample_bytes=1_000_500)
    )
    assert budgets == {"a": 500_000, "b": 500_000, "c": 500}


@settings(deadline=None)
@given(
    sizes=st.dictionaries(st.text("abc", min_size=1), st.integers(0, 10**9), max_size=30),
    wanted=st.integers(1, 10**9),
    temperature=st.floats(0.5, 100),
)
def test_budgets_are_within_sizes_and_use_the_sample_up(
    sizes: dict[str, int], wanted: int, temperature: float
) -> None:
    config = TokenizerConfig(sample_bytes=wanted, temperature=temperature)
    budgets = sample_budgets(sizes, config)
    assert budgets.keys() == sizes.keys()
    assert all(0 <= budgets[code] <= sizes[code] for code in sizes)
    possible = min(wanted, sum(sizes.values()))
    assert possible - len(sizes) <= sum(budgets.values()) <= possible


def test_equal_samples_give_equal_tokenizers(tmp_path: Path, tokenizer: Tokenizer) -> None:
    config = TokenizerConfig(vocab_size=700)
    backwards = {code: SAMPLE[code] for code in reversed(SAMPLE)}
    assert train_tokenizer(backwards, config, tmp_path / "t").sha256 == tokenizer.sha256
    other = SAMPLE | {"eng_Latn": [ENGLISH[1000:]]}
    assert train_tokenizer(other, config, tmp_path / "u").sha256 != tokenizer.sha256


def test_the_folder_says_how_it_was_trained(tokenizer: Tokenizer) -> None:
    assert tokenizer.meta["settings"]["vocab_size"] == 700 and tokenizer.vocab_size == 700
    assert "path" not in tokenizer.meta["settings"]
    assert tokenizer.meta["sample_bytes"] == {
        code: len(texts[0].encode()) for code, texts in SAMPLE.items()
    }


# What is refused


def test_a_vocabulary_too_large_for_the_sample(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"vocab_size=8192: .* only (\d+): use \1 or less"
    ) as caught:
        train_tokenizer(SAMPLE, TokenizerConfig(), tmp_path / "t")
    assert list(tmp_path.iterdir()) == []
    largest = int(str(caught.value).split("use ")[1].split()[0])
    config = TokenizerConfig(vocab_size=largest)
    assert train_tokenizer(SAMPLE, config, tmp_path / "t").vocab_size == largest
    with pytest.raises(DataError, match=rf"only {largest}"):
        train_tokenizer(SAMPLE, TokenizerConfig(vocab_size=largest + 1), tmp_path / "u")


def test_a_sample_too_small_for_any_vocabulary(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"only \d+: give more text, for 320 at least"):
        train_tokenizer({"x": ["a few words"]}, TokenizerConfig(), tmp_path / "t")


@pytest.mark.parametrize(
    ("settings_", "problem"),
    [
        ({"vocab_size": 300}, "vocab_size=300: 4 specials and 256 bytes .* use 320 or more"),
        ({"temperature": 0.0}, "temperature=0.0: use a number greater than 0"),
        ({"sample_bytes": 0}, "sample_bytes=0: use a number greater than 0"),
    ],
)
def test_settings_that_no_sample_satisfies(
    tmp_path: Path, settings_: dict[str, Any], problem: str
) -> None:
    with pytest.raises(DataError, match=problem):
        train_tokenizer(SAMPLE, TokenizerConfig(**settings_), tmp_path / "t")


def test_a_sample_without_text(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the tokenizer's sample holds no text"):
        train_tokenizer({"eng_Latn": ["\n"]}, TokenizerConfig(), tmp_path / "t")


def test_a_folder_that_is_already_there(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match="is already there"):
        tokenizer.save(tmp_path)


def test_a_missing_tokenizer(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(DataError, match="no tokenizer here"):
            Tokenizer.load(folder)


def test_a_damaged_tokenizer(tmp_path: Path, tokenizer: Tokenizer) -> None:
    tokenizer.save(tmp_path / "t")
    path = tmp_path / "t" / "tokenizer.model"
    path.write_bytes(tokenizer.model[:-1])
    with pytest.raises(DataError, match=r"tokenizer\.model: damaged"):
        Tokenizer.load(tmp_path / "t")


@pytest.mark.parametrize(("meta", "problem"), [("{", "not JSON"), ("[]", "damaged, or not the")])
def test_a_tokenizer_without_its_description(
    tmp_path: Path, tokenizer: Tokenizer, meta: str, problem: str
) -> None:
    tokenizer.save(tmp_path / "t")
    (tmp_path / "t" / "tokenizer_meta.json").write_text(meta)
    with pytest.raises(DataError, match=problem):
        Tokenizer.load(tmp_path / "t")


# Hugging Face


@pytest.fixture(scope="module")
def fast(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    import transformers

    folder = tmp_path_factory.mktemp("hf")
    export_hf_tokenizer(tokenizer, folder, model_max_length=512)
    names = {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}
    assert {path.name for path in folder.iterdir()} == names
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield transformers.AutoTokenizer.from_pretrained(folder)


def test_hugging_face_gives_the_same_ids_on_every_language(
    real_tokenizer: Tokenizer, real_texts: list[str]
) -> None:
    other = hf_tokenizer(real_tokenizer)
    ours = real_tokenizer.encode_batch(real_texts, threads=1)
    theirs = [each.ids for each in other.encode_batch_fast(real_texts)]
    assert [i for i, ids in enumerate(ours) if [2, *ids] != theirs[i]] == []
    decoded = other.decode_batch(theirs, skip_special_tokens=True)
    assert decoded == [real_tokenizer.decode(ids) for ids in ours]


@settings(max_examples=300, deadline=None)
@given(text=TEXT)
def test_hugging_face_gives_the_same_ids_for_any_text(
    tokenizer: Tokenizer, fast: Any, text: str
) -> None:
    ids = fast(text).input_ids
    assert ids == [tokenizer.bos_id, *tokenizer.encode(text)]
    assert fast.decode(ids, skip_special_tokens=True) == text


REPETITIVE = st.one_of(
    st.text(a, max_size=50) for a in ("ab", "an ", "aab -", "hman", "人生 ", "0= ")
)


@settings(max_examples=500, deadline=None)
@given(text=REPETITIVE)
def test_hugging_face_gives_the_same_ids_for_repetitive_text(
    repetitive: Tokenizer, repetitive_fast: Any, text: str
) -> None:
    ids = repetitive_fast.encode(text, add_special_tokens=False).ids
    assert ids == repetitive.encode(text)


@pytest.fixture(scope="module")
def repetitive(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    generator = random.Random(5)
    alphabets = ["ab", "an ", "aab -", "hman", "人生 ", "0= "]
    texts = ["".join(generator.choices(a, k=60)) for _ in range(500) for a in alphabets]
    folder = tmp_path_factory.mktemp("tokenizer") / "repetitive"
    return train_tokenizer({"x": texts}, TokenizerConfig(vocab_size=900), folder)


@pytest.fixture(scope="module")
def repetitive_fast(repetitive: Tokenizer) -> Any:
    return hf_tokenizer(repetitive)


@pytest.mark.parametrize("text", AWKWARD)
def test_hugging_face_gives_the_same_ids_for_awkward_text(
    tokenizer: Tokenizer, fast: Any, text: str
) -> None:
    assert fast(text).input_ids == [tokenizer.bos_id, *tokenizer.encode(text)]
    assert fast.decode(fast(text).input_ids, skip_special_tokens=True) == text


def test_hugging_face_knows_the_specials(tokenizer: Tokenizer, fast: Any) -> None:
    assert (fast.pad_token_id, fast.unk_token_id) == (tokenizer.pad_id, tokenizer.unk_id)
    assert (fast.bos_token_id, fast.eos_token_id) == (tokenizer.bos_id, tokenizer.eos_id)
    assert len(fast) == tokenizer.vocab_size and fast.is_fast
    assert fast.model_max_length == 512 and fast.clean_up_tokenization_spaces is False


def test_hugging_face_pads_a_batch(tokenizer: Tokenizer, fast: Any) -> None:
    batch = fast([SENTENCES["eng_Latn"], "a"], padding=True)
    assert batch.input_ids[1][0] == tokenizer.bos_id
    assert batch.input_ids[1][-1] == tokenizer.pad_id and batch.attention_mask[1][-1] == 0


# The report


def test_the_report_counts_what_it_says(tokenizer: Tokenizer) -> None:
    texts = {
        "eng_Latn": {"1": "human beings", "2": "free"},
        "tha_Thai": {"1": "มนุษย์", "2": "ก"},
        "fin_Latn": {},
    }
    rows = {row.language: row for row in tokenizer_report(tokenizer, texts)}
    assert rows.keys() == {"eng_Latn", "tha_Thai"}
    english, thai = rows["eng_Latn"], rows["tha_Thai"]
    tokens = len(tokenizer.encode("human beings")) + len(tokenizer.encode("free"))
    assert (english.texts, english.bytes, english.tokens) == (2, 16, tokens)
    assert english.fertility == tokens / 3 and english.bytes_per_token == 16 / tokens
    assert (english.byte_fallback, english.premium) == (0.0, 1.0)
    assert thai.byte_fallback == 1.0 and thai.tokens == thai.bytes == 21
    assert thai.premium == 21 / tokens


def test_a_newline_is_no_fallback(tokenizer: Tokenizer) -> None:
    (row,) = tokenizer_report(tokenizer, {"eng_Latn": {"1": "\n\t\n"}})
    assert row.byte_fallback == 0 and row.premium is None


def test_the_premium_compares_equal_ids_only(tokenizer: Tokenizer) -> None:
    texts = {
        "a": {"1": "x" * 10, "2": "x" * 30, "3": "x"},
        "b": {"2": "x" * 60, "9": "x" * 999},
        "c": {"8": "x"},
        "d": {"1": "x" * 5},
    }
    rows = {r.language: r.premium for r in tokenizer_report(tokenizer, texts)}
    ratio = len(tokenizer.encode("x" * 60)) / len(tokenizer.encode("x" * 30))
    cheap = len(tokenizer.encode("x" * 5)) / len(tokenizer.encode("x" * 10))
    assert rows == {"a": 1 / cheap, "b": ratio / cheap, "c": None, "d": 1.0}
    assert all(r.premium is None for r in tokenizer_report(tokenizer, texts, parallel=False))


def test_the_report_is_a_table_and_json(tokenizer: Tokenizer) -> None:
    rows = tokenizer_report(tokenizer, {c: {"1": s} for c, s in SENTENCES.items()})
    console = Console(width=100, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(report_table(rows))
    shown = console.export_text()
    assert all(code in shown for code in SENTENCES)
    report = json.loads(report_json(rows))
    assert [each["language"] for each in report["languages"]] == [r.language for r in rows]
    summary = fairness(rows)
    assert summary and report["fairness"]["gini"] == summary.gini
    for number in (f"{summary.gini:.3f}", f"{summary.byte_fallback:.1%}", summary.worst_language):
        assert number in " ".join(shown.split())
    assert json.loads(report_json([])) == {"fairness": None, "languages": []}
    assert [r.premium for r in rows] == sorted((r.premium or 0 for r in rows), reverse=True)


@pytest.mark.parametrize(
    ("values", "expected"),
    [([1, 1, 1], 0.0), ([0, 0, 0, 8], 0.75), ([1, 3], 0.25), ([3, 1], 0.25), ([1, 2, 3], 2 / 9)],
)
def test_the_gini_coefficient(values: list[float], expected: float) -> None:
    assert gini(values) == pytest.approx(expected)


def test_fairness_in_few_numbers(tokenizer: Tokenizer) -> None:
    texts = {
        "eng_Latn": {"1": "human beings", "2": "free"},
        "tha_Thai": {"1": "มนุษย์"},
        "fin_Latn": {"9": "ihmiset"},
    }
    rows = tokenizer_report(tokenizer, texts)
    english, thai = (next(r for r in rows if r.language == c) for c in ("eng_Latn", "tha_Thai"))
    found = fairness(rows)
    assert found is not None and found.languages == 2  # fin_Latn shares no id
    premium = thai.premium or 0.0
    assert premium > 1.05
    assert (found.worst_premium, found.worst_language) == (premium, "tha_Thai")
    assert found.gini == gini([1.0, premium])
    assert found.premium_95 == pytest.approx(1 + 0.95 * (premium - 1))
    assert found.least_bytes_per_token == 1.0 == thai.bytes_per_token
    tokens = english.tokens + thai.tokens
    assert found.bytes_per_token == (english.bytes + thai.bytes) / tokens
    assert found.byte_fallback == thai.tokens / tokens
    alone = fairness(tokenizer_report(tokenizer, texts, parallel=False))
    assert alone is not None and alone.languages == 3
    assert (alone.gini, alone.worst_premium, alone.worst_language) == (None, None, "tha_Thai")
    assert fairness([]) is None


def test_parallel_text_is_read(tmp_path: Path) -> None:
    rows = [
        {"lang": "swh_Latn", "id": "1", "text": "moja"},
        {"language": "fin_Latn", "id": "1", "text": "yksi"},
        {"lang": "swh_Latn", "id": "1", "text": "another version"},
    ]
    path = tmp_path / "parallel.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    assert parallel_texts(path) == {"swh_Latn": {"1": "moja"}, "fin_Latn": {"1": "yksi"}}


@pytest.mark.parametrize("line", ["{", "[]", '{"lang": "swh_Latn", "text": "x"}', '{"id": "1"}'])
def test_parallel_text_without_its_fields(tmp_path: Path, line: str) -> None:
    path = tmp_path / "parallel.jsonl"
    path.write_text('{"lang": "swh_Latn", "id": "1", "text": "x"}\n' + line)
    with pytest.raises(DataError, match=r"parallel\.jsonl: line 2: no JSON object with language"):
        parallel_texts(path)
