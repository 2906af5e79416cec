"""Activation checkpointing: the same losses and gradients from fewer kept tensors."""

from dataclasses import replace

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from xylem.model.config import LayerPlan, ModelConfig, RoutingConfig
from xylem.model.decoder import Decoder, DecoderExtras, build_decoder
from xylem.model.noise import row_keys
from xylem.model.objectives import next_token_loss
from xylem.model.routers import FamilySegment

FAMILIES = ("alpha", "beta", "gamma")
SEGMENTS = (FamilySegment("alpha", 0, 2), FamilySegment("gamma", 2, 4))


def config(router: str) -> ModelConfig:
    plan = LayerPlan(repeat=3, trunk_width=48, expert_width=16, router=router)  # type: ignore[arg-type]
    routing = RoutingConfig(expert_masking=0.2, output_masking=0.1, gate=True)
    if router != "family":
        routing = replace(routing, sequence_loss=0.01, z_loss=0.01, shared_experts=1)
    if router in ("prior", "topk"):
        routing = replace(routing, balance="quantile")
    return ModelConfig(
        vocab_size=97, hidden_size=32, heads=4, kv_heads=2, head_dim=8,
        layer_plan=(plan, LayerPlan(trunk_width=40)), routing=routing, init_std=0.2,
    )  # fmt: skip


def trained(router: str, recompute: int) -> tuple[Decoder, DecoderExtras, float, int]:
    """A backward pass: decoder, extras, loss, and values kept for it."""
    decoder = build_decoder(config(router), FAMILIES, seed=1)
    decoder.recompute = recompute
    tokens = torch.randint(0, 97, (4, 24), generator=torch.Generator().manual_seed(0))
    documents = (torch.arange(24) >= 7).long().expand(4, 24)
    extras, kept = DecoderExtras(), dict[tuple[int, int], int]()

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if not isinstance(tensor, torch.nn.Parameter):
            kept[storage.data_ptr(), tensor._version] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = decoder(
            tokens, documents, SEGMENTS, keys_B=row_keys(0, 3, torch.arange(4)), extras=extras
        )
    loss = next_token_loss(hidden, decoder.head_weight_VD, tokens.roll(-1, 1))[0]
    if extras.auxiliary is not None:
        loss = loss + extras.auxiliary
    bytes_kept = sum(kept.values())
    loss.backward()
    return decoder, extras, loss.item(), bytes_kept


@pytest.mark.parametrize("router", ["family", "prior", "topk", "hybrid", "domain"])
@pytest.mark.parametrize("recompute", [1, 2])
def test_losses_gradients_and_statistics_are_those_without(router: str, recompute: int) -> None:
    plain, plain_extras, plain_loss, plain_bytes = trained(router, 0)
    again, extras, loss, kept = trained(router, recompute)
    assert loss == plain_loss
    gradients = {n: p.grad for n, p in plain.named_parameters()}
    for name, parameter in again.named_parameters():
        expected = gradients[name]
        assert (parameter.grad is None) == (expected is None), name
        if expected is not None and parameter.grad is not None:
            assert torch.equal(parameter.grad, expected), name
    assert extras.layers.keys() == plain_extras.layers.keys() == {0, 1, 2}
    for number, left in extras.layers.items():
        before = plain_extras.layers[number]
        assert left.gate_B is not None and before.gate_B is not None
        assert torch.equal(left.gate_B, before.gate_B)
        if left.statistics is None or before.statistics is None:
            assert router == "family"
            continue
        assert torch.equal(left.statistics.experts_BE, before.statistics.experts_BE)
        assert int(left.statistics.experts_BE.sum()) == 4 * 24 * 2
    assert kept < plain_bytes


def test_every_layer_keeps_less_than_every_other() -> None:
    kept = [trained("topk", recompute)[3] for recompute in (0, 2, 1)]
    assert kept == sorted(kept, reverse=True) and kept[2] < 0.5 * kept[0]


def test_routers_losses_reach_the_routers_through_recomputed_layers() -> None:
    decoder = build_decoder(config("topk"), FAMILIES, seed=1)
    decoder.recompute = 1
    extras = DecoderExtras()
    tokens = torch.arange(48).view(4, 12)
    decoder(tokens, torch.zeros_like(tokens), SEGMENTS, extras=extras)
    assert extras.auxiliary is not None
    extras.auxiliary.backward()
    rows = decoder.layers[2].feed_forward.router.experts["alpha"].weight
    assert rows.grad is not None and rows.grad.abs().sum() > 0


def test_evaluation_is_untouched() -> None:
    decoder = build_decoder(config("prior"), FAMILIES, seed=1)
    tokens = torch.arange(48).view(4, 12)
    with torch.no_grad():
        before = decoder.logits(tokens, torch.zeros_like(tokens), SEGMENTS)
        decoder.recompute = 1
        assert torch.equal(decoder.logits(tokens, torch.zeros_like(tokens), SEGMENTS), before)
