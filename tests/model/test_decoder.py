"""The decoder: families apart, documents apart, equal to Qwen3's block."""

import pytest
import torch

from xylem.model.accounting import count_parameters, forward_flops_per_token
from xylem.model.config import LayerPlan, ModelConfig
from xylem.model.decoder import build_decoder, parameter_family
from xylem.model.errors import ModelError
from xylem.model.routers import FamilySegment

FAMILIES = ("alpha", "beta", "gamma")


def config(**changes: object) -> ModelConfig:
    settings: dict[str, object] = {
        "vocab_size": 97,
        "hidden_size": 32,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 8,
        "layer_plan": (
            LayerPlan(trunk_width=48, expert_width=16),
            LayerPlan(trunk_width=40),
            LayerPlan(trunk_width=32, expert_width=24),
        ),
        "init_std": 0.2,
    }
    return ModelConfig(**{**settings, **changes})  # type: ignore[arg-type]


def batch(B: int = 4, T: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 97, (B, T), generator=generator)
    documents = (torch.arange(T) >= 7).long().expand(B, T)
    return tokens, documents


def test_an_expert_moves_only_its_own_family() -> None:
    decoder = build_decoder(config(), FAMILIES, seed=1)
    tokens, documents = batch()
    segments = (FamilySegment("alpha", 0, 1), FamilySegment("gamma", 1, 4))
    before = decoder.logits(tokens, documents, segments)
    with torch.no_grad():
        decoder.layers[0].feed_forward.experts["alpha"].down.weight += 1.0
        decoder.layers[2].feed_forward.experts["beta"].down.weight += 1.0
    after = decoder.logits(tokens, documents, segments)
    assert not torch.allclose(before[0], after[0])
    assert torch.equal(before[1:], after[1:])


def test_a_family_without_rows_has_no_gradient() -> None:
    decoder = build_decoder(config(), FAMILIES, seed=1)
    tokens, documents = batch()
    decoder.logits(tokens, documents, (FamilySegment("beta", 0, 4),)).sum().backward()
    for name, parameter in decoder.named_parameters():
        expected = parameter_family(name) in (None, "beta")
        assert (parameter.grad is not None) == expected, name


def test_rows_do_not_depend_on_how_they_are_grouped() -> None:
    decoder = build_decoder(config(), FAMILIES, seed=1)
    tokens, documents = batch()
    together = decoder.logits(
        tokens, documents, (FamilySegment("alpha", 0, 2), FamilySegment("beta", 2, 4))
    )
    alone = decoder.logits(tokens[3:], documents[3:], (FamilySegment("beta", 0, 1),))
    torch.testing.assert_close(together[3:], alone)


def test_no_document_sees_another() -> None:
    decoder = build_decoder(config(), FAMILIES, seed=1)
    tokens, documents = batch()
    segments = (FamilySegment("alpha", 0, 4),)
    before = decoder.logits(tokens, documents, segments)
    changed = tokens.clone()
    changed[:, :7] = (changed[:, :7] + 1) % 97
    after = decoder.logits(changed, documents, segments)
    assert torch.equal(before[:, 7:], after[:, 7:])
    assert not torch.allclose(before[:, :7], after[:, :7])


def test_no_position_sees_ahead() -> None:
    decoder = build_decoder(config(), FAMILIES, seed=1)
    tokens, _ = batch()
    one_document = torch.zeros_like(tokens)
    segments = (FamilySegment("alpha", 0, 4),)
    before = decoder.logits(tokens, one_document, segments)
    changed = tokens.clone()
    changed[:, -1] = (changed[:, -1] + 1) % 97
    after = decoder.logits(changed, one_document, segments)
    assert torch.equal(before[:, :-1], after[:, :-1])


def test_a_document_does_not_depend_on_its_place_in_the_sequence() -> None:
    decoder = build_decoder(config(), FAMILIES, seed=1).double()
    tokens, documents = batch()
    packed = decoder.logits(tokens, documents, (FamilySegment("alpha", 0, 4),))
    alone = decoder.logits(
        tokens[:, 7:], torch.zeros(4, 5, dtype=torch.long), (FamilySegment("alpha", 0, 4),)
    )
    # Rotary tables are float32 by design; positions differ, so agreement is to their precision.
    torch.testing.assert_close(packed[:, 7:], alone, atol=1e-5, rtol=1e-5)


def test_initial_weights_do_not_depend_on_other_families() -> None:
    few = dict(build_decoder(config(), ("beta",), seed=3).named_parameters())
    many = dict(build_decoder(config(), FAMILIES, seed=3).named_parameters())
    assert all(torch.equal(parameter, many[name]) for name, parameter in few.items())
    other = dict(build_decoder(config(), ("beta",), seed=4).named_parameters())
    assert not torch.equal(few["embed.weight"], other["embed.weight"])
    assert abs(many["embed.weight"].std().item() - 0.2) < 0.02


def test_counts_are_those_of_the_model() -> None:
    counts = count_parameters(config(), FAMILIES)
    decoder = build_decoder(config(), FAMILIES, seed=0)
    assert counts.total == sum(p.numel() for p in decoder.parameters())
    assert counts.families["alpha"] == 3 * 32 * (16 + 24)
    assert counts.active == counts.total - 2 * counts.families["alpha"]


def test_flops_are_those_pytorch_counts_for_the_products() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    settings = config(attention="reference")
    decoder = build_decoder(settings, FAMILIES, seed=0)
    tokens, _ = batch(B=2, T=16)
    with FlopCounterMode(display=False) as counter:
        decoder.logits(tokens, torch.zeros_like(tokens), (FamilySegment("alpha", 0, 2),))
    # The reference multiplies the whole square; the formula counts the causal half.
    attention = 3 * 2 * 2 * 4 * 8 * (16 - (16 + 1) / 2)
    assert (
        counter.get_total_flops()
        == (forward_flops_per_token(settings, FAMILIES, 16) + attention) * 32
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kv_heads": 3}, "model.heads=4 is not a multiple of model.kv_heads=3"),
        ({"head_dim": 7}, "model.head_dim=7 is odd"),
        ({"layer_plan": ()}, "model.layer_plan is empty"),
        ({"layer_plan": (LayerPlan(trunk_width=0),)}, r"model.layer_plan\[0\] has"),
        ({"hidden_size": 0}, "model.hidden_size=0 must be at least 1"),
    ],
)
def test_a_model_that_cannot_be_built_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        config(**changes)


def test_a_family_without_an_expert_is_named() -> None:
    decoder = build_decoder(config(), FAMILIES, seed=0)
    tokens, documents = batch()
    with pytest.raises(ModelError, match="family .delta. has no expert"):
        decoder.logits(tokens, documents, (FamilySegment("delta", 0, 4),))
    with pytest.raises(ValueError, match="cover 3 of 4 rows"):
        decoder.logits(tokens, documents, (FamilySegment("alpha", 0, 3),))
