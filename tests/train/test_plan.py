"""Plans: what is counted is what the run then holds and reads; the impossible is refused."""

import dataclasses
import io

import pytest
import torch
from rich.console import Console
from torch.autograd.graph import saved_tensors_hooks

from xylem.data.errors import DataError
from xylem.data.manifest import Manifest
from xylem.data.stream import build_order, first_ledger
from xylem.model.accounting import (
    activation_bytes,
    count_parameters,
    forward_flops_per_token,
    layer_activation_bytes,
)
from xylem.model.config import LayerPlan, ModelConfig
from xylem.model.decoder import build_decoder, saved_tensors
from xylem.model.routers import FamilySegment
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


def test_experts_that_no_data_reaches_are_told(prepared: Prepared) -> None:
    manifest = Manifest.load(prepared.folder)
    config = compose_config([*prepared.settings, "run.steps=50"])
    assert make_plan(config, manifest).unreached == ()
    family = manifest.families[-1]
    config = compose_config([
        *prepared.settings, "run.steps=50", f"data.mixture.families={{{family}: 0}}",
    ])  # fmt: skip
    plan = make_plan(config, manifest)
    assert [f"the experts of {family} in layers" in line for line in plan.unreached] == [True]
    console = Console(file=io.StringIO(), width=200)
    print_plan(plan, config, console)
    assert plan.unreached[0] in console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("router", ["prior", "topk"])
def test_a_plan_of_token_routers_counts_the_experts_a_token_uses(
    router: str, prepared: Prepared
) -> None:
    config = compose_config([*prepared.settings, f"model=tiny_{router}"])
    manifest = Manifest.load(prepared.folder)
    plan, families = make_plan(config, manifest), manifest.families
    decoder = build_decoder(config.model, families, seed=0, device="meta")
    counts, D, width, routed = plan.parameters, 256, 96, 4
    shared = 2 if router == "prior" else 0
    assert counts.total == sum(p.numel() for p in decoder.parameters())
    assert counts.shared == routed * shared * (3 * D * width + D)
    rows = 2 * (3 * D * width + D)
    head = D if router == "prior" else 0
    assert counts.families == dict.fromkeys(families, routed * rows + head)
    experts = 2 * len(families) + shared
    # Two experts of each layer are used, and all rows of routers and the head.
    assert counts.active == counts.total - routed * (experts - 2) * 3 * D * width
    family = compose_config([*prepared.settings, "model=tiny"]).model
    more = routed * experts * D + head * len(families)
    assert counts.active == count_parameters(family, families).active + more
    assert plan.forward_flops == forward_flops_per_token(family, families, 32) + 2 * more
    text = io.StringIO()
    print_plan(plan, config, Console(file=text, width=110))
    assert ("shared experts" in text.getvalue()) == bool(shared)
    assert f"{counts.active:,}" in text.getvalue()


@pytest.mark.parametrize("router", ["family", "topk", "prior"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_layers_keep_is_estimated_within_a_tenth(router: str, precision: str) -> None:
    model = ModelConfig(
        vocab_size=64, hidden_size=128, heads=4, kv_heads=2, head_dim=32,
        layer_plan=(LayerPlan(repeat=4, trunk_width=256, expert_width=128, router=router),),  # type: ignore[arg-type]
    )  # fmt: skip
    families = ("alpha", "beta")
    decoder = build_decoder(model, families, seed=0)
    tokens = torch.randint(0, 64, (4, 80), generator=torch.Generator().manual_seed(0))
    segments = [FamilySegment("alpha", 0, 2), FamilySegment("beta", 2, 4)]
    weights = {(p.shape, p.shape[::-1]) for p in decoder.parameters()}
    shapes = {shape for pair in weights for shape in pair}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.shape not in shapes:  # weights and their bf16 copies are counted elsewhere
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    bf16 = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
    with saved_tensors_hooks(keep, lambda tensor: tensor), bf16:
        decoder(tokens, torch.zeros_like(tokens), segments)
    size = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())

    width, tokens = 2 if precision == "bf16" else 4, 4 * 80
    layer = layer_activation_bytes(model, model.layers[0], families, bytes_per_value=width)
    assert (4 * layer + 4 * 129) * tokens == pytest.approx(size, rel=0.1)


def test_recomputed_layers_keep_their_input_until_their_backward_pass() -> None:
    model = ModelConfig(
        vocab_size=64, hidden_size=128, heads=4, kv_heads=2, head_dim=32,
        layer_plan=(LayerPlan(repeat=4, trunk_width=256, expert_width=128),),
    )  # fmt: skip

    def estimate(recompute: int, **more: object) -> int:
        return activation_bytes(
            model, ("alpha",), sequences=4, sequence_length=80, bytes_per_value=4,
            recompute=recompute, last=False, **more,  # type: ignore[arg-type]
        )  # fmt: skip

    tokens, stream = 4 * 80, 4 * 80 * 4 * 128
    layer = layer_activation_bytes(model, model.layers[0], ("alpha",), bytes_per_value=4) * tokens
    moving = estimate(0) - 4 * layer
    # The last layer's backward pass has all before it; recomputed ones are inputs alone.
    assert estimate(1) == pytest.approx(4 * stream + layer + moving)
    assert estimate(2) == pytest.approx(2 * stream + 2 * layer + moving)
    # A pipeline's earlier micro-batches wait whole.
    assert estimate(0, in_flight=3) == pytest.approx(3 * 4 * layer + moving)


def test_the_checkpoints_size_is_that_of_weights_and_states(prepared: Prepared) -> None:
    from xylem.train.optimizer import Optimizers

    config = compose_config(list(prepared.settings))
    manifest = Manifest.load(prepared.folder)
    decoder = build_decoder(config.model, manifest.families, seed=0)
    optimizers = Optimizers(decoder, config.optim, 10)
    for parameter in decoder.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizers.step(0)
    states = [value for _, _, value in optimizers.state()]
    tensors = [*saved_tensors(decoder).values(), *states]
    size = sum(t.numel() * t.element_size() for t in tensors)
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
