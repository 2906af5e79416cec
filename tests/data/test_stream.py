"""The stream on real shards: elastic over processes, pure, with bounds that match the tokens."""

import numpy as np
import pytest
import torch

from xylem.data.errors import DataError
from xylem.data.packing import IGNORED, pack, sequences_in
from xylem.data.prepare import load_prepared
from xylem.data.stream import Stream, first_ledger
from xylem.data.token_line import TokenLine
from xylem.train.compose import compose_config

from ..conftest import Prepared


def stream(prepared: Prepared, **more: int) -> Stream:
    config = compose_config(list(prepared.settings))
    manifest, _ = load_prepared(prepared.folder)
    return Stream(
        prepared.folder, manifest, first_ledger(config.data, manifest, config.run.steps), **more
    )


@pytest.mark.parametrize(("world", "micro_slots"), [(1, 1), (1, 4), (2, 1), (2, 2), (4, 1)])
def test_elastic_the_global_batch_does_not_depend_on_processes_or_micro_batches(
    prepared: Prepared, world: int, micro_slots: int
) -> None:
    reference = stream(prepared, micro_slots=4)
    ranks = [stream(prepared, rank=r, world=world, micro_slots=micro_slots) for r in range(world)]
    for step in (0, 1, 7, 100):
        (whole,) = reference.read(step).micro_batches
        parts = [micro for rank in ranks for micro in rank.read(step).micro_batches]
        for name in ("inputs_BT", "targets_BT", "documents_BT", "languages_B"):
            joined = torch.cat([getattr(part, name) for part in parts])
            assert torch.equal(joined, getattr(whole, name)), (step, name)


def test_read_ahead_gives_what_reading_now_gives(prepared: Prepared) -> None:
    ahead, now = stream(prepared), stream(prepared)
    for step in range(12):
        one, other = ahead.batch(step), now.read(step)
        assert one.families == other.families
        for a, b in zip(one.micro_batches, other.micro_batches, strict=True):
            assert torch.equal(a.inputs_BT, b.inputs_BT)
    ahead.close()


def test_pure_rows_hold_the_language_they_name(prepared: Prepared) -> None:
    manifest, tokenizer = load_prepared(prepared.folder)
    source = stream(prepared, micro_slots=2)
    for step in range(10):
        for micro in source.read(step).micro_batches:
            rows = [code for slot in micro.slots for code in (s.source for s in slot.sequences)]
            assert [source.languages[i] for i in micro.languages_B] == rows
            for family, first, last in micro.segments:
                assert {manifest.languages[code].family for code in rows[first:last]} == {family}
            for row, code in enumerate(rows):
                text = tokenizer.decode(micro.inputs_BT[row].numpy())
                letters = {"rus_Cyrl": "а", "tam_Taml": "க"}.get(code, "a")
                others = {"а", "க", "a"} - {letters}
                assert not any(letter in text for letter in others), (code, text)


def test_sequences_tile_the_token_line_and_bounds_match(prepared: Prepared) -> None:
    manifest, _ = load_prepared(prepared.folder)
    entry = manifest.languages["swe_Latn"]
    line = TokenLine(prepared.folder, entry.sources[0].shards)
    T = 32
    for position in range(sequences_in(line.tokens, T)):
        packed = pack(line.read(position * T, position * T + T + 1), manifest.bos_id)
        tokens = line.read(position * T, position * T + T + 1)
        assert (packed.inputs == tokens[:-1]).all()
        kept = packed.targets != IGNORED
        assert (packed.targets[kept] == tokens[1:][kept]).all()
        assert (tokens[1:][~kept] == manifest.bos_id).all()
        assert (np.diff(packed.documents) == (packed.inputs[1:] == manifest.bos_id)).all()


@pytest.mark.parametrize(("tokens", "expected"), [(0, 0), (32, 0), (33, 1), (64, 1), (65, 2)])
def test_a_sequence_needs_one_token_more_for_its_last_target(tokens: int, expected: int) -> None:
    assert sequences_in(tokens, 32) == expected


def test_slots_must_cut_into_equal_pieces(prepared: Prepared) -> None:
    with pytest.raises(DataError, match="data.slots_per_step=4 is not a multiple of 3 processes"):
        stream(prepared, world=3)
