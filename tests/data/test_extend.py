"""`xylem prepare --extend`: text is added under a new manifest, and nothing old is touched."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from xylem.data.config import DataConfig, FamilyConfig, TokenizerConfig
from xylem.data.curation.config import CurationConfig
from xylem.data.errors import DamagedShard, DataError
from xylem.data.manifest import Manifest, load_parent
from xylem.data.preparation import execution, extension
from xylem.data.preparation.documents import keyed_hash
from xylem.data.prepare import is_heldout, prepare
from xylem.data.token_line import TokenLine
from xylem.data.transforms.config import TransformConfig

from .test_preparation import script
from .test_prepare import TEXTS, Said, files, no_space, quiet, shards_of, write_corpus
from .test_prepared_sources import ids_of

# Half of these ids are in the first corpus too.
MORE = {
    "fin_Latn": {f"story/{n}": f"lisää tekstiä numero {n} ja vielä vähän " * 4 for n in range(90)},
    "est_Latn": {f"story/{n}": f"veel teksti number {n} ja natuke veel " * 4 for n in range(90)},
}


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    """A folder prepared from the first corpus."""
    root = tmp_path_factory.mktemp("first")
    config = DataConfig(
        corpus=str(write_corpus(root / "corpus", TEXTS)),
        prepared=str(root / "prepared"),
        heldout_share=0.2,
        heldout_documents=5,
        shard_tokens=1000,
        sequence_length=64,
        tokenizer=TokenizerConfig(vocab_size=400, sample_bytes=20_000),
    )
    quiet(config)
    return config


@pytest.fixture
def first(once: DataConfig, tmp_path: Path) -> DataConfig:
    """Settings of the first corpus, with a prepared folder of the test's own."""
    prepared = tmp_path / "prepared"
    shutil.copytree(once.prepared, prepared)
    return dataclasses.replace(once, prepared=str(prepared))


@pytest.fixture
def more(first: DataConfig, tmp_path: Path) -> DataConfig:
    """The same settings for more text."""
    return dataclasses.replace(first, corpus=str(write_corpus(tmp_path / "more", MORE)))


def heldout(manifest: Manifest, code: str, folder: str) -> list[str]:
    return TokenLine(Path(folder), manifest.languages[code].heldout).document_ids()


def test_what_is_there_is_not_touched_and_the_new_text_is_beside_it(more: DataConfig) -> None:
    folder = Path(more.prepared)
    base, before = Manifest.load(folder), files(folder)
    manifest = quiet(more, extend="books")
    after = files(folder)
    assert {name: after[name] for name in before.keys() - {"manifest.json"}} == {
        name: data for name, data in before.items() if name != "manifest.json"
    }
    added = after.keys() - before.keys()
    assert {name.split("/")[0] for name in added} == {"sets", "manifests"}
    assert {name.split("/")[1] for name in added if name.startswith("sets/")} == {"books"}
    assert Manifest.load(folder) == manifest and manifest.hash != base.hash
    assert manifest.parents == (base.hash,) and load_parent(folder, base.hash) == base
    for code, entry in base.languages.items():
        now = manifest.languages[code]
        assert now.sources[: len(entry.sources)] == entry.sources
        assert (now.family, now.heldout) == (entry.family, entry.heldout)
    assert not Path(f"{folder}.partial").exists()


def test_a_language_that_is_there_gets_a_source_and_a_new_one_an_entry(more: DataConfig) -> None:
    manifest = quiet(more, extend="books")
    names = {code: [s.name for s in e.sources] for code, e in manifest.languages.items()}
    assert names == {
        "eng_Latn": ["eng_Latn"],
        "est_Latn": ["est_Latn"],
        "fin_Latn": ["fin_Latn", "fin_Latn@books"],
        "hin_Deva": ["hin_Deva"],
    }
    assert list(manifest.languages) == sorted(names)
    source = manifest.sources["fin_Latn@books"]
    assert (source.language, source.languages, source.copies) == ("fin_Latn", ("fin_Latn",), 1)
    assert shards_of(more.prepared, source.shards)[0].path == (
        "sets/books/train/fin_Latn/00000.tar"
    )
    assert manifest.families == tuple(sorted({e.family for e in manifest.languages.values()}))
    assert manifest.languages["est_Latn"].family == manifest.languages["fin_Latn"].family


def test_heldout_ids_are_never_trained_on_and_only_new_languages_get_heldout_shards(
    more: DataConfig,
) -> None:
    base = Manifest.load(Path(more.prepared))
    manifest = quiet(more, extend="books")
    trained = {i for i in MORE["fin_Latn"] if not is_heldout(i, more)}
    assert len(trained) < len(MORE["fin_Latn"])
    for name in ("fin_Latn@books", "est_Latn"):
        ids = ids_of(more.prepared, manifest, name)
        assert set(ids) == trained and len(ids) == len(trained)
        assert ids == sorted(ids, key=lambda i: keyed_hash(more.seed, f"order {name}", i))
    assert manifest.languages["fin_Latn"].heldout == base.languages["fin_Latn"].heldout
    kept = heldout(manifest, "est_Latn", more.prepared)
    assert len(kept) == 5 and not set(kept) & trained
    assert not (Path(more.prepared) / "sets/books/heldout/fin_Latn").exists()


def test_the_same_extension_again_does_nothing(more: DataConfig) -> None:
    manifest = quiet(more, extend="books")
    before = files(Path(more.prepared))
    said = Said()
    assert prepare(more, extend="books", console=said.console) == manifest
    assert "extended by books before from this text: nothing to do" in said.text
    assert files(Path(more.prepared)) == before


def test_extensions_in_a_row_hold_all_that_was_before(
    more: DataConfig, first: DataConfig, tmp_path: Path
) -> None:
    base = Manifest.load(Path(more.prepared))
    books = quiet(more, extend="books")
    other = {
        code: {f"n/{i}": f"{t} !" for i, t in enumerate(d.values())} for code, d in MORE.items()
    }
    corpus = str(write_corpus(tmp_path / "other", other))
    news = quiet(dataclasses.replace(more, corpus=corpus), extend="news")
    assert news.parents == (base.hash, books.hash)
    assert [load_parent(Path(more.prepared), h) for h in news.parents] == [base, books]
    assert [s.name for s in news.languages["est_Latn"].sources] == ["est_Latn", "est_Latn@news"]
    assert [s.name for s in news.languages["fin_Latn"].sources] == [
        "fin_Latn", "fin_Latn@books", "fin_Latn@news"
    ]  # fmt: skip
    assert list(news.settings["sets"]) == ["books", "news"]
    said = Said()
    assert prepare(first, console=said.console) == news
    assert "nothing to do" in said.text
    assert quiet(more, extend="books") == news


def test_an_extension_is_the_same_wherever_and_however_it_is_made(
    more: DataConfig, tmp_path: Path
) -> None:
    shutil.copytree(more.prepared, tmp_path / "second")
    second = dataclasses.replace(more, prepared=str(tmp_path / "second"), prepare_workers=2)
    assert quiet(more, extend="books").hash == quiet(second, extend="books").hash
    assert files(tmp_path / "second") == files(Path(more.prepared))


def test_families_of_languages_that_are_there_stay(more: DataConfig) -> None:
    base = Manifest.load(Path(more.prepared))
    family = base.languages["hin_Deva"].family
    other = FamilyConfig(map="single", groups={family: ("est_Latn",)})
    manifest = quiet(dataclasses.replace(more, families=other), extend="books")
    assert {c: manifest.languages[c].family for c in base.languages} == {
        c: e.family for c, e in base.languages.items()
    }
    assert manifest.languages["est_Latn"].family == family
    assert manifest.families == base.families


@pytest.fixture
def distant(first: DataConfig, tmp_path: Path) -> DataConfig:
    """The same settings for text in a language of a family that the folder lacks."""
    texts = {"fin_Latn": MORE["fin_Latn"], "swh_Latn": MORE["est_Latn"]}
    return dataclasses.replace(first, corpus=str(write_corpus(tmp_path / "distant", texts)))


@pytest.mark.parametrize("curated", [False, True])
def test_a_language_of_a_new_family_is_refused_before_anything_is_written(
    distant: DataConfig, monkeypatch: pytest.MonkeyPatch, curated: bool
) -> None:
    monkeypatch.setattr(extension, "read_corpus", None)
    curation = CurationConfig(enabled=curated)
    beside = sorted(Path(distant.prepared).parent.iterdir())
    refused(
        dataclasses.replace(distant, curation=curation),
        r"^--extend books: .* no language of the family of swh_Latn \(atlantic_congo\), .* "
        r"data\.families\.groups\.germanic=\[swh_Latn\], .* \(germanic, indo_iranian, uralic\), "
        "or prepare a folder of its own for a new run$",
        extend="books",
    )
    assert sorted(Path(distant.prepared).parent.iterdir()) == beside


def test_a_group_puts_a_new_language_into_a_family_that_is_there(
    distant: DataConfig, first: DataConfig
) -> None:
    base = Manifest.load(Path(distant.prepared))
    grouped = FamilyConfig(groups={"uralic": ("swh_Latn",)})
    manifest = quiet(dataclasses.replace(distant, families=grouped), extend="books")
    assert manifest.languages["swh_Latn"].family == "uralic"
    assert [s.name for s in manifest.languages["swh_Latn"].sources] == ["swh_Latn"]
    assert manifest.families == base.families == ("germanic", "indo_iranian", "uralic")
    assert Manifest.load(Path(distant.prepared)) == manifest
    # Neither the first command nor this one, with or without the group, has more to do.
    for config, extend in ((first, None), (distant, "books")):
        for families in (FamilyConfig(), grouped):
            again = dataclasses.replace(config, families=families)
            assert quiet(again, extend=extend) == manifest


def test_derived_sources_and_copies_of_an_extension(more: DataConfig) -> None:
    pairs = TransformConfig(transform="pairs", language="fin_Latn", other="est_Latn")
    manifest = quiet(dataclasses.replace(more, derived={"parallel": pairs}), extend="books")
    assert [s.name for s in manifest.languages["fin_Latn"].sources] == [
        "fin_Latn", "fin_Latn@books", "parallel@books"
    ]  # fmt: skip
    assert manifest.sources["parallel@books"].languages == ("fin_Latn", "est_Latn")
    folder = Path(more.prepared) / "sets" / "books" / "train"
    assert sorted(path.name for path in folder.iterdir()) == ["est_Latn", "fin_Latn", "parallel"]


# Refusals


def refused(config: DataConfig, problem: str, **options: Any) -> None:
    folder = Path(config.prepared)
    before = files(folder)
    with pytest.raises(DataError, match=problem) as caught:
        quiet(config, **options)
    assert "\n" not in str(caught.value)
    assert files(folder) == before and not Path(f"{folder}.partial").exists()


def test_a_name_that_is_taken_by_other_text(more: DataConfig) -> None:
    quiet(more, extend="books")
    write_corpus(Path(more.corpus), {"est_Latn": MORE["est_Latn"] | {"new": "uus " * 40}})
    refused(more, r"--extend books: .* files of the corpus differ \(est_Latn.*another name",
            extend="books")  # fmt: skip


def test_a_name_that_is_taken_by_other_settings(more: DataConfig) -> None:
    quiet(more, extend="books")
    changed = dataclasses.replace(more, shard_tokens=500)
    refused(changed, r"--extend books: .* data\.shard_tokens was 1000, is 500", extend="books")


@pytest.mark.parametrize("name", ["", "Books", "a b", "../up", "a@b", ".x", "a.x2"])
def test_a_name_that_is_none(more: DataConfig, name: str) -> None:
    refused(more, r"no name for a shard set: use lower-case", extend=name)


def test_extend_and_force_exclude_each_other(more: DataConfig) -> None:
    refused(more, "--extend and --force exclude each other", extend="books", force=True)


def test_a_folder_that_is_not_prepared_cannot_be_extended(more: DataConfig) -> None:
    nothing = dataclasses.replace(more, prepared=f"{more.prepared}-none")
    refused(nothing, "no manifest here, .* run `xylem prepare`", extend="books")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"seed": 3}, r"data\.seed was 0, is 3"),
        ({"heldout_share": 0.1}, r"data\.heldout_share was 0\.2, is 0\.1"),
        ({"tokenizer": TokenizerConfig(vocab_size=401)}, r"data\.tokenizer was"),
    ],
)
def test_settings_that_must_be_the_folders_own(
    more: DataConfig, changes: dict[str, Any], problem: str
) -> None:
    refused(dataclasses.replace(more, **changes), problem, extend="books")


def test_the_folders_own_tokenizer_may_be_given(more: DataConfig) -> None:
    own = TokenizerConfig(path=f"{more.prepared}/tokenizer")
    assert (
        "fin_Latn@books" in quiet(dataclasses.replace(more, tokenizer=own), extend="books").sources
    )


def test_text_that_is_too_short_to_be_added(more: DataConfig) -> None:
    write_corpus(Path(more.corpus), {"fin_Latn": {"a": "lyhyt", "b": "lyhyt"}})
    refused(more, r"too few training tokens: fin_Latn \(at most \d+\)", extend="books")


# Kills and failures


KILLED_OFTEN = """
from xylem.data.manifest import Manifest
import shutil
work = lambda: module.prepare(configured(sys.argv[1], sys.argv[2]), extend="books")
folder = Path(sys.argv[2])
old, kills, states = Manifest.load(folder), 0, set()
while killed(2 * kills, work):
    kills += 1
    now = Manifest.load(folder)
    states.add(now.hash == old.hash)
    assert now.hash == old.hash or now.parents == (old.hash,), now
    for source in now.sources.values():
        assert (folder / source.shards.table).is_file()
    assert kills < 60
print(kills, len(states))
"""


@pytest.mark.parametrize("leftover", [False, True])
def test_kills_at_any_write_leave_the_old_or_the_new_manifest(
    once: DataConfig, tmp_path: Path, leftover: bool
) -> None:
    corpus, more = write_corpus(tmp_path / "corpus", TEXTS), write_corpus(tmp_path / "more", MORE)
    prepared, reference = str(tmp_path / "prepared"), str(tmp_path / "reference")
    begin = "module.prepare(configured(sys.argv[1], sys.argv[2]))"
    for folder in (prepared, reference):
        with script(begin, str(corpus), folder) as process:
            _, error = process.communicate(timeout=120)
        assert process.returncode == 0, error
    if leftover:
        stale = Path(prepared) / "sets" / "books" / "train" / "fin_Latn"
        stale.mkdir(parents=True)
        (stale / "00099.tar").write_bytes(b"stale")
    with script(KILLED_OFTEN, str(more), prepared) as process:
        out, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    assert int(out.split()[0]) > 5
    assert ("sets/books: removing what an unfinished" in error) or not leftover
    end = "module.prepare(configured(sys.argv[1], sys.argv[2]), extend='books')"
    for folder in (prepared, reference):
        with script(end, str(more), folder) as process:
            _, error = process.communicate(timeout=120)
        assert process.returncode == 0, error
    assert files(Path(prepared)) == files(Path(reference))
    assert not Path(f"{prepared}.partial").exists()


def die(*arguments: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("step", ["the_manifest", "the_end"])
def test_an_extension_that_stopped_at_the_very_end(
    more: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    shutil.copytree(more.prepared, tmp_path / "second")
    base = Manifest.load(Path(more.prepared))
    with monkeypatch.context() as patch:
        if step == "the_manifest":
            patch.setattr(Manifest, "save", die)
        else:
            patch.setattr(extension, "discard", die)
        with pytest.raises(KeyboardInterrupt):
            quiet(more, extend="books")
    stopped = Manifest.load(Path(more.prepared))
    assert (stopped == base) == (step == "the_manifest")
    assert (Path(more.prepared) / "sets" / "books").is_dir()
    manifest = quiet(more, extend="books")
    second = dataclasses.replace(more, prepared=str(tmp_path / "second"))
    assert quiet(second, extend="books") == manifest
    assert files(Path(second.prepared)) == files(Path(more.prepared))
    assert not Path(f"{more.prepared}.partial").exists()


def test_an_extension_that_ran_out_of_disk_goes_on_with_what_was_finished(
    more: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(more.prepared)
    before = files(folder)
    with monkeypatch.context() as patch:
        patch.setattr(extension, "verify_shards", no_space)
        with pytest.raises(OSError, match="No space left") as caught:
            quiet(more, extend="books")
    assert "the same command again: it goes on from there" in caught.value.__notes__[0]
    assert files(folder) == before
    # Every task was finished, so none is run again.
    monkeypatch.setattr(execution, "complete", None)
    assert quiet(more, extend="books").sources.keys() >= {"fin_Latn@books", "est_Latn"}
    assert not Path(f"{folder}.partial").exists()


def test_an_unnamed_set_of_another_name_is_removed(more: DataConfig) -> None:
    stale = Path(more.prepared) / "sets" / "dropped"
    stale.mkdir(parents=True)
    said = Said()
    prepare(more, extend="books", console=said.console)
    assert not stale.exists()
    assert f"{stale}: removing what an unfinished `xylem prepare --extend` left" in said.text


def test_text_that_changes_while_it_is_added(
    more: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    real: Callable[..., Any] = extension.verify_shards

    def change(*arguments: Any) -> None:
        write_corpus(Path(more.corpus), {"est_Latn": {"a": "uus " * 90}})
        real(*arguments)

    monkeypatch.setattr(extension, "verify_shards", change)
    refused(more, "1 files of the corpus changed while they were prepared", extend="books")


def test_a_folder_that_was_extended_meanwhile(
    more: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = extension.fingerprint

    def other_first(*arguments: Any) -> Any:
        monkeypatch.undo()
        quiet(more, extend="news")
        return real(*arguments)

    monkeypatch.setattr(extension, "fingerprint", other_first)
    with pytest.raises(DataError, match="was extended by another command: run this one again"):
        quiet(more, extend="books")
    assert list(Manifest.load(Path(more.prepared)).settings["sets"]) == ["news"]


def test_a_shard_that_is_damaged_while_it_is_added(
    more: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    real: Callable[..., Any] = extension.verify_shards

    def flip(folder: Path, *rest: Any) -> None:
        path = next(folder.glob("sets/books/train/est_Latn/*.tar"))
        data = bytearray(path.read_bytes())
        data[600] ^= 1
        path.write_bytes(data)
        real(folder, *rest)

    monkeypatch.setattr(extension, "verify_shards", flip)
    before = files(Path(more.prepared))
    with pytest.raises(DamagedShard, match="est_Latn"):
        quiet(more, extend="books")
    assert files(Path(more.prepared)) == before


def test_the_same_files_are_refused_under_another_name(more: DataConfig) -> None:
    quiet(more, extend="books")
    with pytest.raises(DataError, match="--extend again: these files are in .* already, as books"):
        quiet(more, extend="again")
