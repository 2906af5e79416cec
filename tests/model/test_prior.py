"""The router `prior`: its limits, the head that infers the family, what neither may see."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from xylem.model.config import RouterName, RoutingConfig
from xylem.model.decoder import DecoderExtras, build_decoder
from xylem.model.noise import row_keys
from xylem.model.prior import document_sums, family_prior, shown_tags
from xylem.model.routers import (
    FamilySegment,
    TokenRouter,
)

from .routed import (
    CLOSE,
    FAMILIES,
    SEGMENTS,
    TOKEN_ROUTERS,
    UNTAGGED,
    batch,
    block,
    build,
    config,
    context,
)


@pytest.mark.parametrize("normalised", [True, False])
def test_prior_of_strength_zero_is_topk_bit_for_bit(normalised: bool) -> None:
    shape = {"shared_experts": 1, "family_experts": {"alpha": 3}, "normalised": normalised}
    prior, topk = build("prior", prior_strength=0.0, **shape), build("topk", **shape)
    copied = topk.load_state_dict(prior.state_dict(), strict=False)
    assert not copied.missing_keys and all("family_head" in k for k in copied.unexpected_keys)
    tokens, documents = batch()
    one, other = DecoderExtras(), DecoderExtras()
    a = prior(tokens, documents, SEGMENTS, extras=one)
    b = topk(tokens, documents, SEGMENTS, extras=other)
    assert torch.equal(a, b)
    for number, left in one.layers.items():
        theirs = other.layers[number].statistics
        assert left.statistics is not None and theirs is not None
        assert torch.equal(left.statistics.experts_BE, theirs.experts_BE)
        assert torch.equal(left.statistics.probabilities_BE, theirs.probabilities_BE)


def test_prior_of_great_strength_is_the_family_router() -> None:
    prior = build("prior", prior_strength=1e4, top_k=1, experts_per_family=1, normalised=False)
    family = build_decoder(config("family"), FAMILIES, seed=1)
    theirs, ours = family.state_dict(), prior.state_dict()
    for name in theirs:
        source = name.removesuffix(".weight") if ".experts." in name else name
        theirs[name] = ours[source][0] if ".experts." in name else ours[source]
    family.load_state_dict(theirs)
    tokens, documents = batch()
    torch.testing.assert_close(
        prior(tokens, documents, SEGMENTS),
        family(tokens, documents, SEGMENTS),
        **CLOSE,
    )
    assert not torch.allclose(
        prior(tokens, documents, SEGMENTS),
        family(tokens, documents, (FamilySegment("beta", 0, 4),)),
        atol=1e-2,
    )


def test_without_smoothing_a_tagged_token_uses_its_family_and_the_shared_experts_alone() -> None:
    prior = build("prior", prior_smoothing=0.0, shared_experts=1, family_experts={"gamma": 3})
    tokens, documents = batch()
    extras = DecoderExtras()
    prior(tokens, documents, SEGMENTS, extras=extras)
    for left in extras.layers.values():
        assert left.statistics is not None
        counts_BE = left.statistics.experts_BE  # alpha 2, beta 2, gamma 3, shared 1
        assert counts_BE.sum(1).tolist() == [24] * 4
        assert counts_BE[0, 2:7].sum() == 0 and counts_BE[1:, :4].sum() == 0
    # Nobody else's experts can move the output, and a shared one does.
    before = prior(tokens, documents, SEGMENTS)
    feed_forward = prior.layers[0].feed_forward
    with torch.no_grad():
        feed_forward.experts["beta"].down += 1.0
        torch.testing.assert_close(prior(tokens, documents, SEGMENTS), before, **CLOSE)
        feed_forward.shared_experts.down += 1.0
    assert not torch.allclose(prior(tokens, documents, SEGMENTS), before)


def test_the_shared_group_is_allowed_whatever_the_prior() -> None:
    made = block("prior", shared_experts=1, prior_strength=50.0, prior_smoothing=0.01)
    router = made.router
    assert isinstance(router, TokenRouter) and router.shared is not None
    x_BTD = torch.randn(4, 6, 16, generator=torch.Generator().manual_seed(0))
    choice = router(x_BTD, context())
    with_shared_N = (choice.experts_NK == 6).any(-1)
    assert with_shared_N.any() and (choice.weights_NK[with_shared_N] > 0).all()
    own_or_shared_N4 = router.groups_E[choice.experts_NK].view(4, -1)
    for row, family in enumerate([0, 2, 2, 1]):
        assert set(own_or_shared_N4[row].tolist()) <= {family, 3}


def test_groups_may_be_of_any_size() -> None:
    sizes = RoutingConfig(family_experts={"alpha": 1, "gamma": 4}, shared_experts=3)
    router = TokenRouter(8, FAMILIES, "topk", sizes)
    assert router.group_sizes == (1, 2, 4, 3)
    assert router.groups_E.tolist() == [0, 1, 1, 2, 2, 2, 2, 3, 3, 3]
    assert [len(part.weight) for part in router.groups] == [1, 2, 4, 3]


def test_an_untagged_row_takes_the_heads_guess_and_a_tagged_one_its_tag() -> None:
    guess_BTF = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    prior_BTF = family_prior(torch.tensor([-1, 2]), guess_BTF, 0.06)
    torch.testing.assert_close(prior_BTF[0].exp(), 0.94 * guess_BTF[0].exp() + 0.02)
    expected = torch.tensor([0.02, 0.02, 0.96]).log().expand(5, 3)
    torch.testing.assert_close(prior_BTF[1], expected)
    torch.testing.assert_close(prior_BTF.exp().sum(-1), torch.ones(2, 5))
    decoder = build()
    tokens, documents = batch()
    tagged = decoder(tokens, documents, SEGMENTS)
    untagged = decoder(tokens, documents, (FamilySegment("alpha", 0, 1), FamilySegment("", 1, 4)))
    torch.testing.assert_close(tagged[:1], untagged[:1], **CLOSE)
    assert not torch.allclose(tagged[1:], untagged[1:])
    with torch.no_grad():
        decoder.family_head.rows["beta"] += 5.0 * torch.randn(32)
    torch.testing.assert_close(decoder(tokens, documents, SEGMENTS), tagged, **CLOSE)
    assert not torch.allclose(decoder(tokens, documents, UNTAGGED)[1:], untagged[1:])


def test_tag_dropout_hits_its_share_and_hides_the_same_rows_on_any_cut() -> None:
    families_B = torch.zeros(20_000, dtype=torch.int64)
    keys_B = row_keys(5, 3, torch.arange(20_000))
    shown_B = shown_tags(families_B, keys_B, 0.1)
    share = (shown_B == -1).double().mean().item()
    assert abs(share - 0.1) < 3.3 * (0.1 * 0.9 / 20_000) ** 0.5
    parts = [shown_tags(torch.zeros_like(keys), keys, 0.1) for keys in keys_B.split(777)]
    assert torch.equal(torch.cat(parts), shown_B)
    assert torch.equal(shown_tags(families_B, None, 0.1), families_B)
    next_step = shown_tags(families_B, row_keys(5, 4, torch.arange(20_000)), 0.1)
    assert not torch.equal(next_step, shown_B)


def test_all_tags_dropped_is_text_without_tags() -> None:
    decoder = build(tag_dropout=1.0)
    tokens, documents = batch()
    keys = row_keys(0, 0, torch.arange(4))
    dropped = decoder(tokens, documents, SEGMENTS, keys_B=keys)
    assert torch.equal(dropped, decoder(tokens, documents, UNTAGGED))
    # In evaluation, without keys, the tag counts.
    assert not torch.allclose(dropped, decoder(tokens, documents, SEGMENTS))


def test_the_head_learns_families_from_bags_of_tokens() -> None:
    """Each family prefers some of the tokens that all share."""
    decoder = build_decoder(config(tag_dropout=0.0, family_head_loss=1.0), FAMILIES, seed=1)
    head = list(decoder.family_head.parameters())
    optimiser = torch.optim.AdamW(head, lr=0.05)
    weights_FV = torch.ones(3, 97)
    for family in range(3):
        weights_FV[family, family * 30 : family * 30 + 30] = 5.0
    generator = torch.Generator().manual_seed(0)
    segments = [FamilySegment(name, i * 4, i * 4 + 4) for i, name in enumerate(FAMILIES)]
    documents = torch.zeros(12, 48, dtype=torch.int64)

    def drawn() -> Tensor:
        return torch.multinomial(
            weights_FV.repeat_interleave(4, 0), 48, replacement=True, generator=generator
        )

    before = decoder.embed.weight.detach().clone()
    for _ in range(100):
        extras = DecoderExtras()
        decoder._context(decoder.embed(drawn()), documents, segments, None, extras)
        optimiser.zero_grad()
        (extras.auxiliary / (12 * 48)).backward()
        optimiser.step()
    guess_BTF = decoder.family_head(decoder.embed(drawn()), documents)
    right_BT = guess_BTF.argmax(-1) == torch.arange(3).repeat_interleave(4)[:, None]
    assert right_BT[:, 32:].double().mean() > 0.95
    assert right_BT[:, 0].double().mean() < right_BT[:, 32:].double().mean()
    assert torch.equal(decoder.embed.weight, before)


def test_the_heads_loss_moves_the_head_alone_and_the_models_loss_leaves_it() -> None:
    decoder = build(tag_dropout=1.0)
    tokens, documents = batch()
    extras = DecoderExtras()
    hidden = decoder(
        tokens, documents, SEGMENTS, keys_B=row_keys(0, 0, torch.arange(4)), extras=extras
    )
    head = set(decoder.family_head.parameters())
    everything = list(decoder.parameters())
    of_loss = torch.autograd.grad(
        extras.auxiliary, everything, allow_unused=True, retain_graph=True
    )
    of_model = torch.autograd.grad(hidden.square().sum(), everything, allow_unused=True)
    for parameter, mine, models in zip(everything, of_loss, of_model, strict=True):
        if parameter in head:
            assert mine.abs().sum() > 0 and models is None
        else:
            assert mine is None or mine.abs().sum() == 0


def test_sums_of_a_document_are_those_of_its_tokens_so_far() -> None:
    documents_BT = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2, 2, 2, 2], [4] * 9 + [5, -1]])
    x_BTC = torch.randn(2, 11, 3, generator=torch.Generator().manual_seed(0))
    sums_BTC, tokens_BT = document_sums(x_BTC, documents_BT)
    for b in range(2):
        for t in range(11):
            of_it = [s for s in range(t + 1) if documents_BT[b, s] == documents_BT[b, t]]
            assert tokens_BT[b, t] == len(of_it)
            torch.testing.assert_close(sums_BTC[b, t], x_BTC[b, of_it].sum(0))
    # A document's sums are the same bits wherever it stands and whatever stands before it.
    alone, _ = document_sums(x_BTC[:1, 5:], documents_BT[:1, 5:])
    assert torch.equal(alone, sums_BTC[:1, 5:])
    x_BTC[0, :5] = float("nan")
    assert torch.equal(document_sums(x_BTC, documents_BT)[0][:1, 5:], alone)


@pytest.mark.parametrize("segments", [SEGMENTS, UNTAGGED], ids=["tagged", "untagged"])
@pytest.mark.parametrize("router", TOKEN_ROUTERS)
def test_no_token_sees_a_later_one_or_another_document(
    router: RouterName, segments: Sequence[FamilySegment]
) -> None:
    decoder = build(router, shared_experts=1)
    tokens, documents = batch()
    before = decoder(tokens, documents, segments)
    changed = tokens.clone()
    changed[:, :7] = (changed[:, :7] + 1) % 97
    after = decoder(changed, documents, segments)
    torch.testing.assert_close(before[:, 7:], after[:, 7:], **CLOSE)
    assert not torch.allclose(before, after, atol=0.01)
    changed = tokens.clone()
    changed[:, 9] = (changed[:, 9] + 1) % 97
    after = decoder(changed, documents, segments)
    torch.testing.assert_close(before[:, :9], after[:, :9], **CLOSE)
    assert not torch.allclose(before, after, atol=0.01)
