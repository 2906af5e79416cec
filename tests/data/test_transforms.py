"""A derived source depends on its documents, settings and seed alone; mistakes get one line."""

import dataclasses
import gzip
import json
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xylem.data.errors import DataError
from xylem.data.sources import Document
from xylem.data.transforms import derive as derive_module
from xylem.data.transforms.config import SETTINGS, TransformConfig
from xylem.data.transforms.derive import check, declared_languages, derive, spec
from xylem.train.build import build
from xylem.train.errors import UserError

CORPUS = ("eng_Latn", "fin_Latn", "hin_Deva", "swh_Latn")
WORDS = {
    "eng_Latn": "water fire house tree river stone sky bread salt night",
    "fin_Latn": "vesi tuli talo puu joki kivi taivas leipä suola yö",
    "hin_Deva": "पानी आग घर पेड़ नदी पत्थर आकाश रोटी नमक रात",
    "swh_Latn": "maji moto nyumba mti mto jiwe anga mkate chumvi usiku",
}
DICTIONARY = "".join(
    f"{a}\t{b}\t{b.upper()}\n"
    for a, b in zip(WORDS["eng_Latn"].split(), WORDS["fin_Latn"].split(), strict=True)
)


def texts(code: str, documents: int = 40) -> list[Document]:
    chosen, words = random.Random(code), WORDS[code].split()
    return [
        Document(
            id=f"story/{n}",
            text="\n".join(" ".join(chosen.choices(words, k=8)) for _ in range(12)),
        )
        for n in range(documents)
    ]


@dataclass
class Reader:
    """The training documents of the languages, and how often each was asked for."""

    documents: dict[str, list[Document]]
    asked: list[str] = field(default_factory=list)

    def __call__(self, code: str) -> Iterator[Document]:
        self.asked.append(code)
        yield from self.documents[code]


@pytest.fixture
def read() -> Reader:
    return Reader({code: texts(code) for code in CORPUS})


@pytest.fixture
def dictionary(tmp_path: Path) -> str:
    path = tmp_path / "eng-fin.tsv"
    path.write_text(DICTIONARY, encoding="utf-8")
    return str(path)


Make = Callable[[str], TransformConfig]


@pytest.fixture
def make(dictionary: str) -> Make:
    """A working configuration of a transform."""

    def make_config(transform: str) -> TransformConfig:
        return {
            "pairs": TransformConfig(transform="pairs", language="swh_Latn", other="eng_Latn"),
            "interleave": TransformConfig(
                transform="interleave", language="hin_Deva", other="eng_Latn", window_bytes=400
            ),
            "code_switch": TransformConfig(
                transform="code_switch",
                language="eng_Latn",
                other="fin_Latn",
                dictionary=dictionary,
            ),
            "romanize": TransformConfig(transform="romanize", language="hin_Deva"),
        }[transform]

    return make_config


def by_id(documents: Iterable[Document]) -> dict[str, str]:
    return {document.id: document.text for document in documents}


every_transform = pytest.mark.parametrize("transform", sorted(SETTINGS))

# What every transform promises


@every_transform
def test_a_source_derived_twice_is_equal(transform: str, make: Make, read: Reader) -> None:
    once = list(derive("new", make(transform), read, seed=3))
    assert len(once) == 40
    assert list(derive("new", make(transform), read, seed=3)) == once


@every_transform
def test_a_document_does_not_depend_on_the_others_nor_on_their_order(
    transform: str, make: Make, read: Reader
) -> None:
    whole = by_id(derive("new", make(transform), read, seed=3))
    some = {
        code: random.Random(code).sample([d for d in documents if int(d.id[6:]) % 3], 26)
        for code, documents in read.documents.items()
    }
    part = by_id(derive("new", make(transform), Reader(some), seed=3))
    assert len(part) == 26
    assert part == {i: text for i, text in whole.items() if i in part}


@pytest.mark.parametrize("transform", ["pairs", "interleave", "code_switch"])
def test_seed_and_source_name_decide_the_draws(transform: str, make: Make, read: Reader) -> None:
    config = make(transform)
    plain = list(by_id(derive("new", config, read, seed=3)).values())
    assert list(by_id(derive("new", config, read, seed=4)).values()) != plain
    assert list(by_id(derive("newer", config, read, seed=3)).values()) != plain


@every_transform
def test_a_derived_document_is_named_after_its_origin_and_the_source(
    transform: str, make: Make, read: Reader
) -> None:
    found = [document.id for document in derive("new", make(transform), read, seed=3)]
    assert found == [f"story/{n}#new" for n in range(40)]


@every_transform
def test_a_derived_document_counts_once(transform: str, make: Make, read: Reader) -> None:
    read.documents = {
        code: [dataclasses.replace(each, copies=3) for each in documents]
        for code, documents in read.documents.items()
    }
    assert {document.copies for document in derive("new", make(transform), read, seed=3)} == {1}


@pytest.mark.parametrize(
    ("transform", "expected"),
    [
        ("pairs", ("swh_Latn", "eng_Latn")),
        ("interleave", ("hin_Deva", "eng_Latn")),
        ("code_switch", ("eng_Latn", "fin_Latn")),
        ("romanize", ("hin_Deva", "hin_Latn")),
    ],
)
def test_the_languages_of_a_source_are_declared_its_own_first(
    transform: str, expected: tuple[str, ...], make: Make
) -> None:
    assert declared_languages(make(transform)) == expected


@pytest.mark.parametrize(("transform", "passes"), [("pairs", 3), ("code_switch", 1)])
def test_only_declared_languages_are_read(
    transform: str, passes: int, make: Make, read: Reader
) -> None:
    config = make(transform)
    list(derive("new", config, read, seed=3))
    assert len(read.asked) == passes
    assert set(read.asked) <= set(declared_languages(config))


@pytest.mark.parametrize("transform", ["code_switch", "romanize"])
def test_one_document_is_held_at_a_time(transform: str, make: Make, read: Reader) -> None:
    given: list[str] = []

    def counted(code: str) -> Iterator[Document]:
        for document in read.documents[code]:
            given.append(document.id)
            yield document

    next(derive("new", make(transform), counted, seed=3))
    assert given == ["story/0"]


# The canonical description


@every_transform
def test_the_spec_is_json_without_paths(transform: str, make: Make, tmp_path: Path) -> None:
    found = spec(make(transform))
    assert json.loads(json.dumps(found)) == found
    assert str(tmp_path) not in json.dumps(found)
    assert {"transform": transform, "version": 1}.items() <= found.items()
    assert set(found) - {"packages"} == {"transform", "version", "language", *SETTINGS[transform]}


def test_the_spec_changes_with_the_dictionarys_bytes_and_not_with_its_name(
    make: Make, dictionary: str
) -> None:
    before = spec(make("code_switch"))
    moved = Path(dictionary).rename(Path(dictionary).with_name("other.tsv"))
    values = {"transform": "code_switch", "language": "eng_Latn", "other": "fin_Latn"}
    config = TransformConfig(**values, dictionary=str(moved))  # type: ignore[arg-type]
    assert spec(config) == before
    moved.write_text(DICTIONARY + "air\tilma\n", encoding="utf-8")
    assert spec(config) != before


def test_the_spec_tells_defaults_and_the_same_values_given_alike(make: Make) -> None:
    given = TransformConfig(
        transform="pairs", language="swh_Latn", other="eng_Latn", template="{first}\n\n{second}"
    )
    assert spec(given) == spec(make("pairs"))
    other = TransformConfig(
        transform="pairs", language="swh_Latn", other="eng_Latn", template="{second} {first}"
    )
    assert spec(other) != spec(make("pairs"))


@pytest.mark.parametrize(
    ("transform", "package"), [("romanize", "uroman"), ("code_switch", "regex")]
)
def test_the_spec_names_the_version_that_decides_the_output(
    transform: str, package: str, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(derive_module, "version", lambda name: f"{name} 9.9")
    assert spec(make(transform))["packages"] == {package: f"{package} 9.9"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Holder:
    derived: dict[str, TransformConfig]


def test_settings_are_built_from_yaml() -> None:
    values: dict[str, Any] = {"transform": "romanize", "language": "hin_Deva"}
    assert build(_Holder, {"derived": {"hin-rom": values}}) == _Holder(
        derived={"hin-rom": TransformConfig(transform="romanize", language="hin_Deva")}
    )
    with pytest.raises(UserError, match="did you mean 'derived.hin-rom.language'"):
        build(_Holder, {"derived": {"hin-rom": {**values, "languag": "x"}}})


# Pairs


def pairs(read: Callable[[str], Iterable[Document]], **more: Any) -> list[Document]:
    config = TransformConfig(transform="pairs", language="swh_Latn", other="eng_Latn", **more)
    check("p", config, CORPUS)
    return list(derive("p", config, read, seed=0))


def test_a_pair_is_two_documents_of_one_id_and_direction_alternates(read: Reader) -> None:
    swahili, english = (by_id(read.documents[code]) for code in ("swh_Latn", "eng_Latn"))
    directions = []
    for document in pairs(read):
        origin = document.id.removesuffix("#p")
        first, second = document.text.split("\n\n")
        assert {first, second} == {swahili[origin], english[origin]}
        directions.append(first == swahili[origin])
    assert 10 < sum(directions) < 30


def test_a_document_without_translation_gives_no_pair(read: Reader) -> None:
    read.documents["eng_Latn"] = read.documents["eng_Latn"][5:9]
    assert [d.id for d in pairs(read)] == ["story/5#p", "story/6#p", "story/7#p", "story/8#p"]


def test_of_several_documents_with_one_id_the_first_is_taken() -> None:
    swahili = [Document(id="a", text="moja"), Document(id="a", text="mbili")]
    english = [Document(id="a", text="one"), Document(id="a", text="two")]
    found = pairs(Reader({"swh_Latn": swahili, "eng_Latn": english}))
    assert [set(document.text.split()) for document in found] == [{"moja", "one"}]


def test_the_template_is_used_and_braces_of_the_text_are_kept() -> None:
    reader = Reader(
        {
            "swh_Latn": [Document(id="a", text="{first} {0} moja")],
            "eng_Latn": [Document(id="a", text="{second} one")],
        }
    )
    template = "{{{first_code}}} {first} = {second} ({second_code})"
    assert [d.text for d in pairs(reader, template=template)] in (
        ["{swh_Latn} {first} {0} moja = {second} one (eng_Latn)"],
        ["{eng_Latn} {second} one = {first} {0} moja (swh_Latn)"],
    )


def test_links_pair_documents_of_other_ids(read: Reader, tmp_path: Path) -> None:
    path = tmp_path / "links.tsv.gz"
    path.write_bytes(gzip.compress(b"story/3\tstory/8\nstory/9\tstory/3\nstory/1\tgone\n"))
    found = by_id(pairs(read, links=str(path)))
    assert set(found) == {"story/3#p", "story/9#p"}
    english = by_id(read.documents["eng_Latn"])
    assert english["story/8"] in found["story/3#p"]
    assert english["story/3"] in found["story/9#p"]


def test_a_link_to_a_heldout_document_gives_nothing(read: Reader, tmp_path: Path) -> None:
    path = tmp_path / "links.tsv"
    path.write_text("story/3\tstory/8\n")
    read.documents["eng_Latn"] = [d for d in read.documents["eng_Latn"] if d.id != "story/8"]
    assert pairs(read, links=str(path)) == []


# What is refused


def refusal(name: str, config: TransformConfig) -> str:
    with pytest.raises(DataError) as raised:
        check(name, config, CORPUS)
    message = str(raised.value)
    assert "\n" not in message
    return message


@every_transform
def test_a_working_configuration_passes(transform: str, make: Make) -> None:
    check("new", make(transform), CORPUS)


PAIR = {"transform": "pairs", "language": "swh_Latn", "other": "eng_Latn"}
MIX = {**PAIR, "transform": "interleave"}
SWITCH = {**PAIR, "transform": "code_switch", "language": "eng_Latn", "other": "fin_Latn"}
ROMAN = {"transform": "romanize", "language": "hin_Deva"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({**PAIR, "share": 0.5}, "x.share=0.5 has no effect on transform=pairs, which uses lang"),
        ({**PAIR, "window_bytes": 512}, "x.window_bytes=512 has no effect on transform=pairs"),
        ({**MIX, "template": "a"}, "x.template='a' has no effect on transform=interleave"),
        ({**ROMAN, "other": "eng_Latn"}, "x.other='eng_Latn' has no effect on transform=romanize"),
        ({**ROMAN, "ignore_case": False}, "x.ignore_case=False has no effect"),
        ({**PAIR, "other": None}, "x.other is not set, but transform=pairs needs it"),
        (SWITCH, "x.dictionary is not set, but transform=code_switch needs it"),
        ({**PAIR, "language": "swh_Latin"}, "x.language=swh_Latin: no such language in the corpus"),
        ({**PAIR, "other": "eng_Lat"}, "x.other=eng_Lat: no such language in the corpus (did you"),
        ({**PAIR, "other": "swh_Latn"}, "x.other=swh_Latn is the language itself"),
        ({**PAIR, "links": "gone.tsv"}, "x.links=gone.tsv: no such file"),
        ({**SWITCH, "dictionary": "gone.tsv"}, "x.dictionary=gone.tsv: no such file"),
        ({**MIX, "window_bytes": 255}, "x.window_bytes=255 must be at least 256"),
        ({**ROMAN, "language": "fin_Latn"}, "x.language=fin_Latn is in Latin letters already"),
        ({**PAIR, "template": "{first}"}, "must hold {first} and {second}, each once"),
        ({**PAIR, "template": "{first}{first}{second}"}, "must hold {first} and {second}, each"),
        ({**PAIR, "template": "{first} {second} {3}"}, "unknown field {3}: use {first}, {second}"),
        ({**PAIR, "template": "{first} {second!r}"}, "a field takes no format"),
        ({**PAIR, "template": "{first:9} {second}"}, "a field takes no format"),
        ({**PAIR, "template": "{first} {second} {"}, "write a brace that is text as {{ or }}"),
    ],
)
def test_a_setting_that_cannot_work_is_refused(values: dict[str, Any], message: str) -> None:
    found = refusal("x", TransformConfig(**values))
    assert found.startswith("data.derived.x.")
    assert message in found


@pytest.mark.parametrize("share", [-0.1, 0.0, 1.1, float("nan")])
def test_a_share_that_is_no_probability_is_refused(share: float, dictionary: str) -> None:
    config = TransformConfig(**{**SWITCH, "dictionary": dictionary, "share": share})
    assert f"x.share={share} must be above 0 and at most 1" in refusal("x", config)


@pytest.mark.parametrize("name", ["", "eng_Latn", "a b", "a#b", "../a", "ü"])
def test_a_name_that_is_no_source_name_is_refused(name: str) -> None:
    assert f"{name!r} names no source" in refusal(name, TransformConfig(**PAIR))


def test_an_unknown_language_of_a_dictionary_is_refused(
    dictionary: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(code: str) -> None:
        raise DataError(f"language code {code!r}: there is none")

    monkeypatch.setattr(derive_module, "language_of", unknown)
    config = TransformConfig(**{**SWITCH, "dictionary": dictionary, "other": "xqx_Latn"})
    assert "data.derived.x.other: language code 'xqx_Latn'" in refusal("x", config)


def test_a_language_of_a_dictionary_need_not_be_in_the_corpus(
    dictionary: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(derive_module, "language_of", asked.append)
    config = TransformConfig(**{**SWITCH, "dictionary": dictionary, "other": "sme_Latn"})
    check("x", config, CORPUS)
    assert asked == ["sme_Latn"]


@pytest.mark.parametrize(
    ("transform", "package"), [("romanize", "uroman"), ("code_switch", "pyahocorasick")]
)
def test_an_absent_package_is_named_with_its_extra(
    transform: str, package: str, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> str:
        raise derive_module.PackageNotFoundError(name)

    monkeypatch.setattr(derive_module, "version", absent)
    message = refusal("x", make(transform))
    assert f"data.derived.x.transform={transform} needs the package {package}" in message
    assert "xylem[transforms]" in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a\tb\nmaji\n", "line 2: 'maji' has a field too few or an empty one"),
        ("a\tb\n\n\tmaji\n", "line 3: 'maji' has a field too few or an empty one"),
        ("a\tb\n\nc\t \td\n", "line 3: 'c\\t \\td' has a field too few or an empty one"),
        (b"a\tb\n\xff\xfe\tc\n", "line 2: invalid UTF-8"),
        ("\n\n", "holds no term"),
    ],
)
def test_a_wrong_line_of_a_dictionary_is_named(
    content: str | bytes, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "words.tsv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    found = refusal("x", TransformConfig(**{**SWITCH, "dictionary": str(path)}))
    assert found.startswith(str(path))
    assert message in found


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a\tb\na\tc\n", "line 2: 'a' is linked in an earlier line"),
        ("a\tb\nc\tb\n", "line 2: 'b' is linked in an earlier line"),
        ("a\tb\tc\n", "line 1: 3 fields"),
        ("a\n", "line 1: 'a' has a field too few"),
        ("", "holds no link"),
    ],
)
def test_a_wrong_line_of_links_is_named(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "links.tsv"
    path.write_text(content)
    found = refusal("x", TransformConfig(**{**PAIR, "links": str(path)}))
    assert found.startswith(str(path))
    assert message in found


@settings(max_examples=40, deadline=None)
@given(st.text(min_size=1), st.integers(0, 2**63))
def test_any_id_and_seed_can_be_drawn_for(document_id: str, seed: int) -> None:
    documents = {c: [Document(id=document_id, text=c)] for c in ("swh_Latn", "eng_Latn")}
    once = list(derive("p", TransformConfig(**PAIR), documents.__getitem__, seed=seed))
    assert [d.id for d in once] == [f"{document_id}#p"]
    assert once == list(derive("p", TransformConfig(**PAIR), documents.__getitem__, seed=seed))
