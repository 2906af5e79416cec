"""Schedules, and optimisers that leave a family without a slot alone."""

import pytest
import torch

from xylem.model.config import LayerPlan, ModelConfig, RoutingConfig
from xylem.model.decoder import build_decoder, parameter_family
from xylem.model.routers import FamilySegment
from xylem.train.errors import UserError
from xylem.train.optimizer import (
    OptimConfig,
    Optimizers,
    clip_gradients,
    gradient_norm,
    learning_rate_factor,
)


def decoder():  # type: ignore[no-untyped-def]
    config = ModelConfig(
        vocab_size=50, hidden_size=16, heads=2, kv_heads=1, head_dim=8,
        layer_plan=(LayerPlan(trunk_width=24, expert_width=8),),
    )  # fmt: skip
    return build_decoder(config, ("alpha", "beta"), seed=0)


def backward(model, family: str) -> None:  # type: ignore[no-untyped-def]
    tokens = torch.arange(20).view(2, 10)
    model.logits(
        tokens, torch.zeros_like(tokens), (FamilySegment(family, 0, 2),)
    ).square().mean().backward()


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_family_without_a_slot_does_not_drift(name: str) -> None:
    model = decoder()
    optimizers = Optimizers(model, OptimConfig(name=name, warmup_steps=0), 10)
    backward(model, "beta")
    optimizers.step(0)
    held = {n: p.detach().clone() for n, p in model.named_parameters()}
    state = {(n, k): v.clone() for n, k, v in optimizers.state()}
    backward(model, "alpha")
    optimizers.step(1)
    for n, parameter in model.named_parameters():
        moved = not torch.equal(parameter, held[n])
        assert moved == (parameter_family(n) != "beta"), n
    for n, k, v in optimizers.state():
        if parameter_family(n) == "beta":
            assert torch.equal(v, state[n, k]), (n, k)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_every_parameter_is_in_exactly_one_optimiser(name: str) -> None:
    model = decoder()
    optimizers = Optimizers(model, OptimConfig(name=name), 10)
    held = [
        parameter
        for optimizer, _ in optimizers.optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    ]
    assert len(held) == len(set(map(id, held))) == len(list(model.parameters()))
    decayed = optimizers.optimizers[0][0].param_groups
    assert all(p.ndim == 1 for p in decayed[1]["params"]) and decayed[1]["weight_decay"] == 0


def test_schedules_at_their_corners() -> None:
    wsd = OptimConfig(schedule="wsd", warmup_steps=10, decay_share=0.2, final_share=0.1)
    assert learning_rate_factor(wsd, 0, 100) == pytest.approx(0.1)
    assert learning_rate_factor(wsd, 9, 100) == learning_rate_factor(wsd, 79, 100) == 1.0
    assert learning_rate_factor(wsd, 90, 100) == pytest.approx(0.55)
    assert learning_rate_factor(wsd, 100, 100) == pytest.approx(0.1)
    cosine = OptimConfig(schedule="cosine", warmup_steps=10, final_share=0.1)
    assert learning_rate_factor(cosine, 10, 110) == pytest.approx(1.0)
    assert learning_rate_factor(cosine, 60, 110) == pytest.approx(0.55)
    assert learning_rate_factor(cosine, 110, 110) == pytest.approx(0.1)


def test_clipping_is_by_the_norm_of_the_whole_model() -> None:
    model = decoder()
    backward(model, "alpha")
    parameters = list(model.parameters())
    exact = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]).norm()
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = gradient_norm(gradients)
    torch.testing.assert_close(norm, exact)
    clip_gradients(gradients, norm, norm.item() / 3)
    torch.testing.assert_close(gradient_norm(gradients), exact / 3, rtol=1e-4, atol=0)
    clip_gradients(gradients, exact / 3, 0.0)
    torch.testing.assert_close(gradient_norm(gradients), exact / 3, rtol=1e-4, atol=0)


def test_state_of_another_optimiser_is_refused() -> None:
    model = decoder()
    muon = Optimizers(model, OptimConfig(name="muon"), 10)
    backward(model, "alpha")
    muon.step(0)
    state: dict[str, dict[str, torch.Tensor]] = {}
    for name, key, value in muon.state():
        state.setdefault(name, {})[key] = value
    with pytest.raises(UserError, match="resume with the optimiser that began the run"):
        Optimizers(model, OptimConfig(name="adamw"), 10).load(
            lambda name, key, parameter: state.get(name, {}).get(key)
        )


def test_muon_leaves_vectors_and_stacks_to_adamw() -> None:
    config = ModelConfig(
        vocab_size=50, hidden_size=16, heads=2, kv_heads=1, head_dim=8,
        layer_plan=(LayerPlan(trunk_width=24, expert_width=8, router="topk"),),
        routing=RoutingConfig(gate=True),
    )  # fmt: skip
    model = build_decoder(config, ("alpha", "beta"), seed=0)
    optimizers = Optimizers(model, OptimConfig(name="muon"), steps=10)
    _, (muon, _) = optimizers.optimizers
    held = muon.param_groups[0]["params"]
    names = {optimizers.names[p].rpartition("feed_forward.")[2] for p in held}
    assert names == {"layers.0.attention.qkv.weight", "layers.0.attention.out.weight",
                     "trunk.gate_up.weight", "trunk.down.weight"}  # fmt: skip
