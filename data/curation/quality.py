"""Is a document running text? FineWeb-2's recipe of filters, with thresholds for each language.

The recipe (huggingface/fineweb-2, `fineweb-2-pipeline.py`; Penedo et al., 2025, arXiv 2506.20920):
Gopher's repetition rules without those on paragraphs, FineWeb's rules without short lines, Gopher's
quality rules. FineWeb-2 tuned thresholds for each of 1,800 languages with a word tokenizer for
each; `quality.fineweb2_configs` reads its files. A language without one is judged by `RECIPE`.

The filters are datatrove's; the words are cut here, with no tokenizer to install: runs of letters,
marks and digits, and runs of other signs; in scripts without spaces each letter with its marks.
There an n-gram of n words is one of n times `letters_a_word` letters, counts of words are
multiplied alike, and the rules on the length of words do not apply.
This file needs datatrove. Read next: `filtering.py`.
"""

from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import regex
import yaml
from datatrove.data import Document
from datatrove.pipeline.filters import (
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)
from datatrove.utils.word_tokenizers import WordTokenizer

from ..errors import DataError
from .config import LanguageThresholds, QualityConfig
from .scripts_of_text import character_class, letters_a_word, scripts_of
from .setting_files import config_file

NO_WORDS = "no_words"

RECIPE = LanguageThresholds(
    language_score=0.1,
    script_share=0.5,
    dup_line_frac=0.3,
    top_n_grams=((2, 0.2), (3, 0.18), (4, 0.16)),
    dup_n_grams=((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10)),
    line_punct_thr=0.0,
    char_dup_ratio=0.1,
    new_line_ratio=0.3,
    min_doc_words=50,
    max_doc_words=100_000,
    min_avg_word_length=2.0,
    max_avg_word_length=16.0,
    max_non_alpha_words_ratio=0.6,
    stopwords=(),
    min_stop_words=2,
)
"""For a language of which nothing is known: Gopher's and FineWeb's numbers, FineWeb-2's change to
repeated lines, and bounds on words about as wide as FineWeb-2's widest (Greenlandic: 16 letters).
Which signs end a sentence differs too much for one share of lines (`line_punct_thr` is off, as
FineWeb-2 has it for Thai or Amharic). 0.1 is low for a language score: lid.176 is less sure of
itself than GlotLID, of which FineWeb-2 asks 0.3 to 0.9."""

_WORD_SIGNS = r"\p{L}\p{M}\p{N}\u200c\u200d"


class Words(WordTokenizer):
    """Cuts text into words for datatrove's filters, by script alone."""

    def __init__(self, iso15924: str) -> None:
        super().__init__()
        sign, letter = f"[{_WORD_SIGNS}]", ""
        if letters_a_word(iso15924) > 1:
            unspaced = rf"[\p{{L}}&&{character_class(scripts_of(iso15924))}]"
            sign, letter = f"[{sign}--{unspaced}]", rf"{unspaced}\p{{M}}*|"
        pattern = rf"{letter}{sign}+(?:['’ʼ-]{sign}+)*|[^\s{_WORD_SIGNS}]+"
        self._pattern = regex.compile(f"(?V1){pattern}")

    def word_tokenize(self, text: str) -> list[str]:
        """The words of a text in their order, and what stands between them but white space."""
        words: list[str] = self._pattern.findall(text)
        return words

    def sent_tokenize(self, text: str) -> list[str]:
        """Not used: no filter of the recipe counts sentences."""
        raise NotImplementedError

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        """Not used, like `sent_tokenize`."""
        raise NotImplementedError


class QualityFilters:
    """The recipe's filters with one language's thresholds."""

    def __init__(self, code: str, thresholds: LanguageThresholds) -> None:
        """`thresholds` are whole, as `thresholds_of` gives them."""
        script = code.split("_")[1]
        each = asdict(thresholds)
        units = letters_a_word(script)
        self._words = Words(script)
        self._filters = (
            GopherRepetitionFilter(
                dup_line_frac=each["dup_line_frac"],
                dup_para_frac=0,
                dup_line_char_frac=0,
                dup_para_char_frac=0,
                top_n_grams=[_top(n, share, units) for n, share in each["top_n_grams"]],
                dup_n_grams=[(n * units, share) for n, share in each["dup_n_grams"]],
                language=self._words,
            ),
            FineWebQualityFilter(
                line_punct_thr=each["line_punct_thr"],
                short_line_thr=999,
                char_duplicates_ratio=each["char_dup_ratio"],
                new_line_ratio=each["new_line_ratio"] / units,
                language=self._words,
            ),
            GopherQualityFilter(
                min_doc_words=each["min_doc_words"] * units,
                max_doc_words=each["max_doc_words"] * units,
                min_avg_word_length=each["min_avg_word_length"] if units == 1 else None,
                max_avg_word_length=each["max_avg_word_length"] if units == 1 else None,
                max_symbol_word_ratio=0.1 / units,
                max_non_alpha_words_ratio=each["max_non_alpha_words_ratio"],
                min_stop_words=each["min_stop_words"] if each["stopwords"] else None,
                stop_words=list(each["stopwords"]),
                language=self._words,
            ),
        )

    def reason(self, text: str) -> str | None:
        """The name of the first rule that a text breaks, None if it keeps all."""
        if not any(any(map(str.isalnum, word)) for word in self._words.word_tokenize(text)):
            return NO_WORDS
        document = Document(text=text, id="")
        for each in self._filters:
            result = each.filter(document)
            if result is not True:
                return str(result[1])
        return None


def thresholds_of(code: str, config: QualityConfig, *, with_scores: bool) -> LanguageThresholds:
    """A language's thresholds, every one of them set.

    FineWeb-2's files hold language scores of GlotLID; they count only `with_scores`, that is with a
    model file of the user's. Raises DataError: a file of FineWeb-2's cannot be read.
    """
    levels = [RECIPE, config.default]
    path = config_file(code, config)
    if path is not None:
        levels.append(read_config_file(path, with_scores=with_scores))
    if code in config.languages:
        levels.append(config.languages[code])
    values: dict[str, Any] = {}
    for level in levels:
        values |= {
            each.name: getattr(level, each.name)
            for each in fields(level)
            if getattr(level, each.name) is not None
        }
    return LanguageThresholds(**values)


def read_config_file(path: Path, *, with_scores: bool) -> LanguageThresholds:
    """The thresholds of one of FineWeb-2's files; raises DataError."""
    names = {each.name for each in fields(LanguageThresholds)}
    try:
        read = yaml.safe_load(path.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: no YAML ({' '.join(str(error).split())}): copy it again"
        ) from None
    if not isinstance(read, Mapping) or not set(read) <= names:
        odd = sorted(set(read) - names)[0] if isinstance(read, Mapping) else read
        raise DataError(
            f"{path}: {odd!r} is no threshold of FineWeb-2's: these are {', '.join(sorted(names))}"
        )
    values = {name: _frozen(value) for name, value in read.items()}
    if not with_scores:
        values.pop("language_score", None)
    return LanguageThresholds(**values)


def check_languages(config: QualityConfig, languages: list[str]) -> None:
    """Refuses thresholds of languages that the corpus does not hold; raises DataError."""
    unknown = sorted(set(config.languages) - set(languages))
    if unknown:
        raise DataError(
            f"curation.quality.languages names {unknown[0]}, of which the corpus holds nothing: "
            f"correct the code or leave it out (the corpus has {', '.join(languages[:8])}"
            f"{' …' if len(languages) > 8 else ''})"
        )
    if config.fineweb2_configs and not any(Path(config.fineweb2_configs).glob("*_*.yml")):
        raise DataError(
            f"{config.fineweb2_configs}: no files such as swh_Latn.yml: set "
            "curation.quality.fineweb2_configs to the folder `configs` of huggingface/fineweb-2"
        )


def _top(n: int, share: float, units: int) -> tuple[int, float]:
    # datatrove counts the blanks between an n-gram's words: between letters there are none.
    size = n * units
    return (size, share) if units == 1 else (size, share * (2 * size - 1) / size)


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
