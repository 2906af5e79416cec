"""Plans: what is counted is what the run then holds and reads; the impossible is refused."""

import dataclasses

import pytest
import torch

from xylem.data.errors import DataError
from xylem.data.manifest import Manifest
from xylem.data.stream import build_order, first_ledger
from xylem.model.decoder import build_decoder
from xylem.train.compose import compose_config
from xylem.train.console import OUT
from xylem.train.errors import UserError
from xylem.train.plan import make_plan, print_plan

from ..conftest import Prepared


def test_parameters_tokens_and_epochs_are_those_of_the_run(prepared: Prepared) -> None:
    config = compose_config([*prepared.settings, "run.steps=50"])
    manifest = Manifest.load(prepared.folder)
    plan = make_plan(config, manifest)
    decoder = build_decoder(config.model, manifest.families, seed=0, device="meta")
    assert plan.parameters.total == sum(p.numel() for p in decoder.parameters())
    assert plan.tokens_per_step == 4 * 2 * 32
    ledger = first_ledger(config.data, manifest, config.run.steps)
    cursors = build_order(ledger, manifest).cursors(50)
    total = sum(row.tokens for row in plan.languages)
    assert total == pytest.approx(50 * plan.tokens_per_step, abs=32 * len(cursors))
    for row in plan.languages:
        # A slot is two sequences: a family is within one slot of its target.
        assert abs(row.sequences - cursors[row.code]) <= 3
        held = (manifest.languages[row.code].train_tokens - 1) // 32
        assert row.epochs == pytest.approx(row.sequences / held)
    print_plan(plan, config, OUT)


def test_the_checkpoints_size_is_what_is_written(prepared: Prepared, tmp_path) -> None:  # type: ignore[no-untyped-def]
    from xylem.train.checkpoint import snapshot
    from xylem.train.optimizer import Optimizers

    config = compose_config(list(prepared.settings))
    manifest = Manifest.load(prepared.folder)
    decoder = build_decoder(config.model, manifest.families, seed=0)
    optimizers = Optimizers(decoder, config.optim, 10)
    for parameter in decoder.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizers.step(0)
    files = snapshot(decoder, optimizers)
    size = sum(t.numel() * t.element_size() for file in files.values() for t in file.values())
    assert size == pytest.approx(make_plan(config, manifest).checkpoint_bytes, rel=0.01)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (["cluster.processes_per_node=3"], DataError, "is not a multiple of 3 processes"),
        (["engine.micro_slots=3"], DataError, "take 3 or 6"),
        (["cluster.memory_gib=0.001"], UserError, "a process would need .* GiB, cluster.memory_gi"),
        (["model.vocab_size=401"], UserError, "set model.vocab_size=400"),
        (
            ["data.languages=[swh_Latn]"],
            UserError,
            "data.languages and the prepared folder .* differ",
        ),
        (["data.sequence_length=100000"], DataError, "less than one sequence"),
    ],
)
def test_what_cannot_work_is_refused(
    settings: list[str], error: type[Exception], message: str, prepared: Prepared
) -> None:
    config = compose_config([*prepared.settings, *settings])
    with pytest.raises(error, match=message):
        make_plan(config, Manifest.load(prepared.folder))


def test_a_manifest_of_other_text_is_refused_on_resume(prepared: Prepared) -> None:
    config = compose_config(list(prepared.settings))
    manifest = Manifest.load(prepared.folder)
    ledger = first_ledger(config.data, manifest, config.run.steps)
    other = dataclasses.replace(manifest, seed=manifest.seed + 1)
    with pytest.raises(DataError, match="the run's mixture from step 0 was decided over manifest"):
        build_order(ledger, other)
