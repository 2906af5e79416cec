"""Held-out bits per byte: documents whole, padding unseen, bytes counted right."""

from pathlib import Path

import numpy as np
import pytest
import torch

from xylem.data.packing import IGNORED
from xylem.data.prepare import load_prepared
from xylem.data.token_line import TokenLine
from xylem.model.decoder import build_decoder
from xylem.model.routers import FamilySegment
from xylem.train.compose import compose_config
from xylem.train.config import EngineConfig
from xylem.train.engines.processes import Processes
from xylem.train.evaluation import evaluation_rows, heldout_sums, whole_scoring
from xylem.train.metrics import LanguageSums, family_sums, language_rows

from ..conftest import Prepared


@pytest.mark.parametrize("T", [16, 32, 500])
def test_every_heldout_token_is_predicted_once_from_its_own_document(
    prepared: Prepared, T: int
) -> None:
    manifest, tokenizer = load_prepared(prepared.folder)
    entry = manifest.languages["deu_Latn"]
    line = TokenLine(prepared.folder, entry.heldout)
    bounds = line.document_bounds()
    expected = np.concatenate(
        [line.read(int(a), int(b))[1:] for a, b in zip(bounds[:-1], bounds[1:], strict=True)]
    )
    predicted = []
    for inputs, targets, documents in evaluation_rows(line, T, 0, None):
        assert len(inputs) == len(targets) == len(documents) == T
        kept = targets != IGNORED
        predicted.append(targets[kept])
        assert (documents[~kept] == -1).all()
        # Within a document, a target is the next input.
        same = kept[:-1] & (documents[:-1] == documents[1:])
        assert (targets[:-1][same] == inputs[1:][same]).all()
        begins = np.flatnonzero((np.diff(documents, prepend=-2) != 0) & (documents >= 0))
        if T == 500:  # every document fits a row, so every piece begins with the begin token
            assert (inputs[begins] == tokenizer.bos_id).all()
    assert (np.concatenate(predicted) == expected).all()


def test_bits_per_byte_are_those_of_scoring_each_document_alone(prepared: Prepared) -> None:
    manifest, tokenizer = load_prepared(prepared.folder)
    config = compose_config(list(prepared.settings))
    decoder = build_decoder(config.model, manifest.families, seed=3)
    processes = Processes(EngineConfig(precision="fp32", threads=1))
    sums = heldout_sums(
        whole_scoring(decoder, processes),
        prepared.folder,
        manifest,
        torch.from_numpy(tokenizer.token_bytes).long(),
        sequence_length=600,
        rows=3,
        tokens_per_language=None,
    )
    for code, entry in manifest.languages.items():
        if not entry.heldout.documents:
            continue
        line = TokenLine(prepared.folder, entry.heldout)
        nll, bounds = 0.0, line.document_bounds()
        for a, b in zip(bounds[:-1], bounds[1:], strict=True):
            tokens = torch.from_numpy(line.read(int(a), int(b)))[None]
            with torch.no_grad():
                logits = decoder.logits(
                    tokens[:, :-1],
                    torch.zeros_like(tokens[:, :-1]),
                    (FamilySegment(entry.family, 0, 1),),
                )
            nll += torch.nn.functional.cross_entropy(
                logits[0], tokens[0, 1:], reduction="sum"
            ).item()
        assert sums[code][0] == pytest.approx(nll, rel=1e-5)
        assert sums[code][2] == entry.heldout.text_bytes


def test_sums_add_up_by_language_and_family() -> None:
    sums = LanguageSums(["a", "b", "c"], torch.device("cpu"))
    ones = torch.ones(3, 4)
    sums.add(torch.tensor([0, 2, 0]), ones, ones.bool(), 2 * ones)
    assert sums.by_language() == {"a": (8.0, 8.0, 16.0), "c": (4.0, 4.0, 8.0)}
    families = family_sums(sums.by_language(), {"a": "x", "b": "x", "c": "x"})
    assert families == {"x": (12.0, 12.0, 24.0)}
    row = language_rows(families)["x"]
    assert row["loss"] == 1.0 and row["bpb"] == pytest.approx(0.5 / np.log(2))


def test_a_limit_stops_at_a_documents_end(prepared: Prepared) -> None:
    manifest, _ = load_prepared(prepared.folder)
    line = TokenLine(Path(prepared.folder), manifest.languages["deu_Latn"].heldout)
    bounds = line.document_bounds()
    rows = list(evaluation_rows(line, 32, 0, int(bounds[1]) + 1))
    kept = sum(int((targets != IGNORED).sum()) for _, targets, _ in rows)
    assert kept == int(bounds[2]) - 2  # two documents, each without its begin token
