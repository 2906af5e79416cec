"""What `xylem inspect` shows is what training reads."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from xylem.data.config import DataConfig, TokenizerConfig
from xylem.data.errors import DataError
from xylem.data.inspection import (
    BORDER,
    CHARACTERS,
    InspectedDocument,
    InspectedSequence,
    InspectedSlot,
    InspectedStep,
    inspect_step,
    print_step,
)
from xylem.data.manifest import LanguageEntry, Manifest, Source
from xylem.data.shards import EncodedDocument, write_shards, write_table
from xylem.data.stream import Stream, first_ledger
from xylem.data.tokenizer import Tokenizer, train_tokenizer

TEXTS = {
    "deu_Latn": [f"Der {i}. Satz steht hier.\nUnd ein zweiter." for i in range(60)],
    "nld_Latn": [f"Zin nummer {i} staat hier, kort en goed." for i in range(60)],
    "fin_Latn": [f"Lause numero {i} \x1b[2J on tässä [red]näin[/red]." for i in range(60)],
    "arb_Arab": ["هذه جملة قصيرة في وثيقة قصيرة. 𓀀" for _ in range(60)],
}
FAMILIES = {
    "deu_Latn": "germanic",
    "nld_Latn": "germanic",
    "fin_Latn": "uralic",
    "arb_Arab": "afro_asiatic",
}
T = 48
NO_SHARDS = write_table(Path(), "", ())


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    sample = {code: [t.replace("𓀀", "") for t in texts] for code, texts in TEXTS.items()}
    folder = tmp_path_factory.mktemp("tokenizer") / "tokenizer"
    return train_tokenizer(sample, TokenizerConfig(vocab_size=420), folder)


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Iterator[Stream]:
    prepared = tmp_path_factory.mktemp("prepared")
    entries = {}
    for code, texts in TEXTS.items():
        documents = [
            EncodedDocument(
                id=f"{code}:{i}",
                tokens=np.array([tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id]),
                text_bytes=len(text.encode()),
            )
            for i, text in enumerate(texts)
        ]
        shards = write_shards(
            prepared, f"train/{code}", documents,
            language=code, vocab_size=tokenizer.vocab_size, shard_tokens=100_000,
        )  # fmt: skip
        source = Source(name=code, language=code, languages=(code,), shards=shards)
        entries[code] = LanguageEntry(
            code=code, family=FAMILIES[code], sources=(source,), heldout=NO_SHARDS
        )
    manifest = Manifest(
        tokenizer_sha256=tokenizer.sha256,
        vocab_size=tokenizer.vocab_size,
        bos_id=tokenizer.bos_id,
        eos_id=tokenizer.eos_id,
        languages=entries,
        families=tuple(sorted(set(FAMILIES.values()))),
        seed=0,
    )
    config = DataConfig(
        corpus="", prepared=str(prepared), sequence_length=T, slot_sequences=3, slots_per_step=6
    )
    opened = Stream(prepared, manifest, first_ledger(config, manifest, 20))
    yield opened
    opened.close()


def printed(shown: InspectedStep, *, full: bool = False, tokens: bool = False) -> str:
    text = io.StringIO()
    print_step(Console(file=text, width=200, soft_wrap=True), shown, full=full, tokens=tokens)
    return text.getvalue()


def test_the_slots_and_sequences_are_those_that_training_reads(
    stream: Stream, tokenizer: Tokenizer
) -> None:
    for step in (0, 7):
        shown = inspect_step(stream, tokenizer, step)
        order = stream.order.step(step)
        assert [(s.number, s.family) for s in shown.slots] == [(s.number, s.family) for s in order]
        rows = [row for slot in shown.slots for row in slot.sequences]
        wanted = [row for slot in order for row in slot.sequences]
        assert [(r.source, r.epoch, r.position) for r in rows] == [
            (r.source, r.epoch, r.position) for r in wanted
        ]
        trained = stream.read(step).micro_batches
        predicted = sum(int((micro.targets_BT != -100).sum()) for micro in trained)
        assert sum(row.predicted for row in rows) == predicted
        assert {row.tokens for row in rows} == {T}
        pieces = [[p for document in row.documents for p in document.pieces] for row in rows]
        inputs = [row.tolist() for micro in trained for row in micro.inputs_BT]
        assert pieces == [[tokenizer.pieces[i] for i in row] for row in inputs]


def test_documents_are_told_apart_and_say_where_they_were_cut(
    stream: Stream, tokenizer: Tokenizer
) -> None:
    rows = [
        row
        for step in range(6)
        for slot in inspect_step(stream, tokenizer, step).slots
        for row in slot.sequences
    ]
    whole = [d for row in rows for d in row.documents if d.begins and d.ends]
    cut = [d for row in rows for d in row.documents if not (d.begins and d.ends)]
    texts = {text for of in TEXTS.values() for text in of}
    assert whole and cut
    assert all(document.text in texts for document in whole)
    assert any(document.text not in texts for document in cut)
    for document in cut:
        known = document.text.strip("\ufffd")
        assert any(known in text for text in texts)
    assert all(document.begins for row in rows for document in row.documents[1:])
    assert all(document.ends for row in rows for document in row.documents[:-1])
    assert all(not document.predicted[-1] for row in rows for document in row.documents[:-1])


def test_borders_are_printed_around_documents(stream: Stream, tokenizer: Tokenizer) -> None:
    shown = inspect_step(stream, tokenizer, 0)
    text, summary, _ = printed(shown, full=True).partition("step 0: ")
    documents = [d for slot in shown.slots for row in slot.sequences for d in row.documents]
    assert summary
    assert text.count(BORDER) == sum(d.begins + d.ends for d in documents)
    whole = next(d for d in documents if d.begins and d.ends and "\n" not in d.text)
    assert whole.text.replace("\x1b", "␛") in text


def test_control_characters_and_markup_of_a_corpus_do_not_steer_the_terminal(
    stream: Stream, tokenizer: Tokenizer
) -> None:
    shown = inspect_step(stream, tokenizer, 0)
    for tokens in (False, True):
        text = printed(shown, full=True, tokens=tokens)
        assert "\x1b" not in text
    assert "␛[2J" in printed(shown, full=True)
    assert "[red]" in printed(shown, full=True)


def test_the_token_view_shows_bytes_and_specials(stream: Stream, tokenizer: Tokenizer) -> None:
    text = printed(inspect_step(stream, tokenizer, 0), full=True, tokens=True)
    assert "<0xF0> <0x93> <0x80> <0x80>" in text
    assert "<0x0A>" in text
    assert "<s>" in text and "</s>" in text


def test_a_long_text_is_cut_unless_all_is_asked_for() -> None:
    document = InspectedDocument(
        text="a" * (CHARACTERS + 7), pieces=("a",) * 500, predicted=(True,) * 500,
        begins=True, ends=True,
    )  # fmt: skip
    sequence = InspectedSequence(
        language="deu_Latn", source="deu_Latn", epoch=0, position=0, documents=(document,),
        tokens=500, predicted=500, padding=0,
    )  # fmt: skip
    slot = InspectedSlot(number=0, family="germanic", sequences=(sequence,))
    long = InspectedStep(step=0, slots=(slot,), slots_in_step=1)
    assert "a" * (CHARACTERS + 1) not in printed(long)
    assert "7 characters more (--full shows all)" in printed(long)
    assert "a" * (CHARACTERS + 7) in printed(long, full=True)
    assert "400 tokens more (--full shows all)" in printed(long, tokens=True)


def test_the_summary_counts_slots_sequences_and_tokens(
    stream: Stream, tokenizer: Tokenizer
) -> None:
    shown = inspect_step(stream, tokenizer, 0)
    summary = printed(shown).split("step 0: 6 slots")[1]
    for family, slots in stream.order.slot_counts(0).items():
        line = next(line for line in summary.splitlines() if family in line)
        assert [c.strip() for c in line.split("│")][2] == f"{slots}"
        assert f"{slots * 3 * T:,}" in line
        assert "none" in line
    assert "18 sequences of 4 languages" in summary


def test_only_the_asked_for_slots_are_read(stream: Stream, tokenizer: Tokenizer) -> None:
    shown = inspect_step(stream, tokenizer, 0, slots=2)
    assert len(shown.slots) == 2
    assert "step 0: 2 of 6 slots" in printed(shown)
    assert len(inspect_step(stream, tokenizer, 0, slots=99).slots) == 6


def test_a_step_below_zero_is_refused(stream: Stream, tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match="--step=-1: steps are counted from 0"):
        inspect_step(stream, tokenizer, -1)


def test_fewer_slots_than_one_are_refused(stream: Stream, tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match="--slots=0: at least 1"):
        inspect_step(stream, tokenizer, 0, slots=0)
