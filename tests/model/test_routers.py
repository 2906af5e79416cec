"""Routers, one by one: identities, what each leaves alone, and what is refused."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from xylem.model.config import LayerPlan, RouterName, RoutingConfig
from xylem.model.decoder import build_decoder, parameter_family
from xylem.model.errors import ModelError
from xylem.model.routers import (
    FamilySegment,
    TokenRouter,
    load_domain_rows,
    unreachable_experts,
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
    token_routers,
)


def test_hybrid_puts_the_familys_best_expert_in_the_last_place() -> None:
    router = block("hybrid", top_k=2).router
    assert isinstance(router, TokenRouter)
    x_BTD = torch.randn(4, 6, 16, generator=torch.Generator().manual_seed(0))
    z_BTE = router.logits(x_BTD.flatten(0, 1)).view(4, 6, -1)
    choice = router(x_BTD, context())
    replaced = 0
    for n, (best, last) in enumerate(choice.experts_NK.tolist()):
        z_E, family = z_BTE[n // 6, n % 6], [0, 2, 2, 1][n // 6]
        plain = z_E.topk(2).indices.tolist()
        own = 2 * family + int(z_E[2 * family : 2 * family + 2].argmax())
        assert (best, last) == ((plain[0], plain[1]) if own in plain else (plain[0], own))
        replaced += own not in plain
    assert 0 < replaced < 24
    expected = z_BTE.flatten(0, 1).softmax(-1).gather(-1, choice.experts_NK)
    assert torch.equal(choice.weights_NK, expected)  # of the softmax over all, not renormalised


def test_hybrid_as_published_routes_otherwise_in_evaluation_and_the_mended_one_does_not() -> None:
    tokens, documents = batch()

    def outputs(router: RouterName) -> tuple[Tensor, Tensor]:
        decoder = build("topk", normalised=False) if router == "topk" else build(router)
        trained = decoder.train()(tokens, documents, SEGMENTS)
        return trained, decoder.eval()(tokens, documents, SEGMENTS)

    mended, mended_eval = outputs("hybrid")
    published, published_eval = outputs("hybrid_published")
    topk, topk_eval = outputs("topk")
    assert torch.equal(mended, mended_eval) and torch.equal(topk, topk_eval)
    assert torch.equal(published, mended)  # the same rule in training,
    assert torch.equal(published_eval, topk)  # and plain top-k in evaluation.
    mismatch = (published - published_eval).norm() / published.norm()
    assert mismatch > 0.05, f"relative difference of training and evaluation: {mismatch:.3f}"


def test_hybrid_needs_no_tag() -> None:
    tokens, documents = batch()
    hybrid, topk = build("hybrid"), build("topk", normalised=False)
    assert torch.equal(hybrid(tokens, documents, UNTAGGED), topk(tokens, documents, UNTAGGED))


# domain


def embeddings(folder: Path, **changes: Tensor | None) -> Path:
    generator = torch.Generator().manual_seed(0)
    rows = {name: torch.randn(32, generator=generator) for name in (*FAMILIES, "shared")}
    kept = {name: row for name, row in {**rows, **changes}.items() if row is not None}
    save_file(kept, folder / "rows.safetensors")
    return folder / "rows.safetensors"


def test_domain_rows_are_the_embeddings(tmp_path: Path) -> None:
    path = embeddings(tmp_path)
    decoder = build("domain", domain_rows=str(path), shared_experts=1, family_experts={"beta": 3})
    load_domain_rows(decoder, path)
    rows = load_file(path)
    routers = token_routers(decoder)
    assert len(routers) == 2
    for router in routers:
        for name, part in zip((*FAMILIES, "shared"), router.groups, strict=True):
            assert all(torch.equal(row, rows[name]) for row in part.weight)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beta": None}, "has no embedding of 'beta'; it has alpha, gamma, shared"),
        ({"shared": None}, "has no embedding of 'shared'"),
        ({"gamma": torch.full((32,), float("nan"))}, "NaN or infinite values for 'gamma'"),
        ({"gamma": torch.zeros(16)}, r"holds \[16\] values for 'gamma', the model needs \[32\]"),
    ],
)
def test_a_file_of_domain_rows_that_does_not_fit_is_refused(
    changes: dict[str, Tensor | None], message: str, tmp_path: Path
) -> None:
    decoder = build("domain", shared_experts=1)
    with pytest.raises(ModelError, match=message):
        load_domain_rows(decoder, embeddings(tmp_path, **changes))


def test_a_missing_file_of_domain_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read .*domain_embeddings RUN FILE") as refusal:
        load_domain_rows(build("domain"), tmp_path / "none.safetensors")
    assert "\n" not in str(refusal.value)
    (tmp_path / "cut.safetensors").write_bytes(b"cut")
    with pytest.raises(ModelError, match="cannot be read"):
        load_domain_rows(build("domain"), tmp_path / "cut.safetensors")


def test_the_domain_bias_is_never_positive_and_the_public_expert_has_none() -> None:
    router = block("domain", shared_experts=2).router
    assert isinstance(router, TokenRouter) and router.shared is not None
    x_ND = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    assert router.shared.bias is None
    biases = [part.bias for part in router.groups if part.bias is not None]
    assert len(biases) == 3
    with torch.no_grad():
        for bias in biases:
            bias.zero_()
        plain_NE = router.logits(x_ND)
        biases[0].copy_(torch.tensor([3.0, -2.0]))
        biased_NE = router.logits(x_ND)
    expected_E = torch.tensor([0.0, -2.0, 0, 0, 0, 0, 0, 0])
    torch.testing.assert_close(biased_NE - plain_NE, expected_E.expand(5, 8))


def test_a_bias_without_bound_is_the_family_removed() -> None:
    """FlexOlmo's opt-out: an expert and its row are dropped, the softmax is over the rest."""
    decoder = build("domain", shared_experts=1)
    smaller = build_decoder(config("domain", shared_experts=1), ("alpha", "beta"), seed=2)
    state = decoder.state_dict()
    smaller.load_state_dict({name: state[name] for name in smaller.state_dict()})
    tokens, documents = batch()
    segments = (FamilySegment("alpha", 0, 2), FamilySegment("beta", 2, 4))
    without = smaller(tokens, documents, segments)
    assert not torch.allclose(decoder(tokens, documents, segments), without, atol=0.01)
    with torch.no_grad():
        for router in token_routers(decoder):
            router.experts["gamma"].bias.fill_(-1e4)
    torch.testing.assert_close(decoder(tokens, documents, segments), without, **CLOSE)


# what holds for every token router


@pytest.mark.parametrize("router", TOKEN_ROUTERS)
def test_a_permutation_of_a_groups_experts_permutes_everything(router: RouterName) -> None:
    routing: dict[str, object] = {"shared_experts": 2, "family_experts": {"beta": 3}, "z_loss": 0.1,
                                  "sequence_loss": 0.1}  # fmt: skip
    one, other = block(router, **routing), block(router, **routing)
    orders = {"alpha": [1, 0], "beta": [2, 0, 1], "gamma": [1, 0], "shared": [1, 0]}
    assert isinstance(other.router, TokenRouter) and isinstance(one.router, TokenRouter)
    with torch.no_grad():
        for group, order in orders.items():
            rows = other.router.shared if group == "shared" else other.router.experts[group]
            experts = other.shared_experts if group == "shared" else other.experts[group]
            for module in (rows, experts):
                for parameter in module.parameters():
                    parameter.copy_(parameter[order])
    # order_E[e] of the one is the other's expert e.
    order_E = torch.tensor([1, 0, 4, 2, 3, 6, 5, 8, 7])
    x_BTD = torch.randn(4, 6, 16, generator=torch.Generator().manual_seed(0))
    (a, left), (b, right) = one(x_BTD, context()), other(x_BTD, context())
    torch.testing.assert_close(a, b)
    assert left.statistics is not None and right.statistics is not None
    assert torch.equal(left.statistics.experts_BE[:, order_E], right.statistics.experts_BE)
    assert left.auxiliary is not None and right.auxiliary is not None
    torch.testing.assert_close(left.auxiliary, right.auxiliary)


@pytest.mark.parametrize("router", TOKEN_ROUTERS)
def test_choices_are_k_different_experts_and_statistics_count_them(router: RouterName) -> None:
    made = block(router, top_k=3, shared_experts=1).router
    assert isinstance(made, TokenRouter)
    x_BTD = torch.randn(4, 6, 16, generator=torch.Generator().manual_seed(0))
    choice = made(x_BTD, context())
    assert all(len(set(row)) == 3 for row in choice.experts_NK.tolist())
    for b in range(4):
        counted = torch.bincount(choice.experts_NK.view(4, -1)[b], minlength=7)
        assert torch.equal(counted, choice.statistics.experts_BE[b])
    total = choice.statistics.probabilities_BE.sum(1)
    torch.testing.assert_close(total, torch.full((4,), 6.0))
    sums = choice.weights_NK.sum(-1)
    if router in ("prior", "topk"):
        torch.testing.assert_close(sums, torch.ones(24))
    else:
        assert (sums < 1).all()


def test_the_balance_moves_the_choice_and_not_the_weights() -> None:
    made = block("topk", top_k=2, balance="bias").router
    assert isinstance(made, TokenRouter)
    x_BTD = torch.randn(4, 6, 16, generator=torch.Generator().manual_seed(0))
    balance_E = torch.tensor([1e4, 0.5, -0.5, 0.0, 1.0, -1.0])
    made.set_state(balance_E, torch.zeros(6))
    choice = made(x_BTD, context())
    assert choice.statistics.experts_BE[:, 0].sum() == 0
    z_NE = made.logits(x_BTD.flatten(0, 1))
    assert torch.equal(choice.experts_NK, (z_NE - balance_E).topk(2).indices)
    assert torch.equal(choice.weights_NK, z_NE.gather(-1, choice.experts_NK).softmax(-1))


@pytest.mark.parametrize("router", TOKEN_ROUTERS)
def test_under_bf16_autocast_choices_are_made_in_float32(router: RouterName) -> None:
    made = block(router, shared_experts=1, gate=True, z_loss=0.1, expert_masking=0.2)
    assert isinstance(made.router, TokenRouter)
    x_BTD = torch.randn(4, 6, 16, generator=torch.Generator().manual_seed(0))
    exact, exact_left = made(x_BTD, context())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        choice = made.router(x_BTD, context())
        rounded, left = made(x_BTD, context())
    assert choice.weights_NK.dtype == torch.float32
    assert left.statistics is not None and exact_left.statistics is not None
    assert torch.equal(left.statistics.experts_BE, exact_left.statistics.experts_BE)
    assert left.auxiliary is not None and exact_left.auxiliary is not None
    torch.testing.assert_close(left.auxiliary, exact_left.auxiliary)
    assert (rounded - exact).norm() < 0.02 * exact.norm()


def test_all_tokens_to_one_expert() -> None:
    made = block("topk", top_k=1, normalised=False, sequence_loss=1.0)
    assert isinstance(made.router, TokenRouter)
    with torch.no_grad():
        for part in made.router.groups:
            part.weight.zero_()
        made.router.experts["beta"].weight[1] = 1.0
    x_BTD = torch.rand(4, 6, 16, generator=torch.Generator().manual_seed(0)) + 0.5
    y_BTD, left = made(x_BTD, context())
    assert left.statistics is not None and left.auxiliary is not None
    assert left.statistics.experts_BE.sum(0).tolist() == [0, 0, 0, 24, 0, 0]
    (y_BTD.square().sum() + left.auxiliary).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in made.parameters())


def test_initial_weights_of_a_token_routed_model_do_not_depend_on_other_families() -> None:
    few = build_decoder(config(shared_experts=1), ("beta",), seed=3).state_dict()
    many = build_decoder(config(shared_experts=1), FAMILIES, seed=3).state_dict()
    assert all(torch.equal(tensor, many[name]) for name, tensor in few.items())
    owners = {parameter_family(name) for name in many if "router" in name or "family_head" in name}
    assert owners == {*FAMILIES, None}  # None: the shared experts' rows


@pytest.mark.parametrize(
    ("router", "routing", "message"),
    [
        ("topk", {"prior_strength": 2.0}, "prior_strength=2.0 has no effect without a layer with"),
        ("topk", {"tag_dropout": 0.5}, "tag_dropout=0.5 has no effect without .* router=prior"),
        ("prior", {"domain_rows": "x"}, "domain_rows=x has no effect without .* router=domain"),
        ("hybrid", {"balance": "bias"}, "balance=bias has no effect without .*=prior or topk"),
        ("domain", {"normalised": False}, "normalised=False has no effect"),
        ("family", {"top_k": 4}, "top_k=4 has no effect without a layer with a router other than"),
        ("family", {"z_loss": 0.1}, "z_loss=0.1 has no effect"),
        ("prior", {"bias_rate": 0.1}, "bias_rate=0.1 has no effect without balance=bias"),
        ("prior", {"balance": "bias", "quantile_decay": 0.5}, "without balance=quantile"),
        ("prior", {"balance_target": "uniform"}, "without a balance or a balance loss"),
        ("prior", {"gate_budget": 0.5}, "gate_budget=0.5 has no effect without gate=true"),
        ("family", {"family_budgets": {"alpha": 0.5}}, "has no effect without gate=true"),
        ("topk", {"top_k": 1}, "top_k=1 with normalised=true .* learns nothing from the text"),
        ("prior", {"top_k": 0}, "top_k=0 must be at least 1"),
        ("prior", {"tag_dropout": 1.5}, "tag_dropout=1.5 must be a share between 0 and 1"),
        ("prior", {"expert_masking": 1.0}, "expert_masking=1.0 must be a share from 0 to below 1"),
        ("prior", {"prior_strength": float("inf")}, "prior_strength=inf must be .* at most"),
        ("prior", {"family_experts": {"alpha": 0}}, "family_experts.alpha=0 must be at least 1"),
    ],
)  # fmt: skip
def test_settings_that_cannot_work_are_refused(
    router: RouterName, routing: dict[str, object], message: str
) -> None:
    with pytest.raises(ModelError, match=message) as refusal:
        config(router, **routing)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("routing", "message"),
    [
        ({"family_experts": {"delta": 2}}, "family_experts names delta, which is no family of"),
        ({"gate": True, "family_budgets": {"delta": 0.5}}, "family_budgets names delta"),
        ({"top_k": 9, "shared_experts": 2}, "top_k=9 is more than the 8 experts of a layer"),
        ({"balance": "bias", "experts_per_family": 1}, "each token of alpha top_k=2 experts of"),
    ],
)
def test_settings_that_do_not_fit_the_families_are_refused(
    routing: dict[str, object], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        build_decoder(config("prior", **routing), FAMILIES, seed=0, device="meta")


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (LayerPlan(trunk_width=8, router="prior"), r"layer_plan\[0\] has router=prior and expert"),
        (LayerPlan(trunk_width=8, repeat=0), r"layer_plan\[0\] has repeat=0"),
        (LayerPlan(trunk_width=8, expert_width=-4), "expert_width=-4"),
    ],
)  # fmt: skip
def test_a_layer_plan_that_does_not_fit_is_refused(plan: LayerPlan, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        config(plan=[plan])


@pytest.mark.parametrize("router", ["family", "prior", "topk"])
def test_a_family_that_no_expert_belongs_to_is_refused(router: RouterName) -> None:
    tokens, documents = batch()
    with pytest.raises(ModelError, match="family 'delta' has no expert in this model") as refusal:
        build(router)(tokens, documents, (FamilySegment("delta", 0, 4),))
    assert "\n" not in str(refusal.value)


def test_the_family_router_needs_a_tag() -> None:
    tokens, documents = batch()
    with pytest.raises(ModelError, match="router=family needs a tag"):
        build_decoder(config("family"), FAMILIES, seed=0)(tokens, documents, UNTAGGED)


@pytest.mark.parametrize("router", ["family", "prior"])
@pytest.mark.parametrize("shape", [(0, 12), (4, 0)])
def test_an_empty_batch_is_refused(router: RouterName, shape: tuple[int, int]) -> None:
    empty = torch.zeros(shape, dtype=torch.int64)
    with pytest.raises(ModelError, match=f"an empty batch of {shape[0]} sequences of {shape[1]}"):
        build(router)(empty, empty, (FamilySegment("alpha", 0, shape[0]),))


@pytest.mark.parametrize("segments", [(FamilySegment("alpha", 0, 3),), (FamilySegment("", 1, 4),)])
def test_segments_that_do_not_cover_the_batch_are_refused(
    segments: tuple[FamilySegment, ...],
) -> None:
    tokens, documents = batch()
    with pytest.raises(ValueError, match="family segments"):
        build("topk")(tokens, documents, segments)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_are_counted(value: float) -> None:
    made = block("topk").router
    assert isinstance(made, TokenRouter)
    x_BTD = torch.randn(4, 6, 16, generator=torch.Generator().manual_seed(0))
    assert made(x_BTD, context()).statistics.not_finite == 0
    x_BTD[1, 2], x_BTD[3, 0, 0] = value, value
    assert made(x_BTD, context()).statistics.not_finite == 2


def test_an_unsmoothed_prior_needs_as_many_open_experts_as_choices() -> None:
    """Else a token would take foreign experts with weight 0, and move them by their momentum."""
    routing = RoutingConfig(prior_smoothing=0.0, experts_per_family=1)
    with pytest.raises(ModelError, match=r"prior_smoothing=0 gives .* raise prior_smoothing"):
        routing.group_sizes(FAMILIES)
    shared = RoutingConfig(prior_smoothing=0.0, experts_per_family=1, shared_experts=1)
    assert shared.group_sizes(FAMILIES) == (*(1,) * len(FAMILIES), 1)


@pytest.mark.parametrize(
    ("name", "value"),
    [("shared_experts", 1 << 17), ("experts_per_family", 10**9), ("prior_strength", 1e39),
     ("bias_rate", 1e38), ("z_loss", float("inf"))],
)  # fmt: skip
def test_values_beyond_any_use_are_refused(name: str, value: float) -> None:
    with pytest.raises(ModelError, match=rf"model\.routing\.{name}=.* at most "):
        RoutingConfig(**{name: value})  # type: ignore[arg-type]


def test_experts_that_no_data_reaches_are_told() -> None:
    plan = [
        LayerPlan(trunk_width=8, expert_width=4),
        LayerPlan(trunk_width=8),
        LayerPlan(trunk_width=8, expert_width=4, router="prior"),
        LayerPlan(trunk_width=8, expert_width=4, router="topk"),
        LayerPlan(trunk_width=8, expert_width=4),
    ]
    assert unreachable_experts(config(plan=plan), FAMILIES, FAMILIES) == []
    assert unreachable_experts(config(plan=plan), FAMILIES, {"alpha", "gamma"}) == [
        "the experts of beta in layers 0, 4 are never trained (router=family): the run reads none "
        "of its languages",
        "the experts of beta in layer 2 see no text of their own (router=prior): the run reads "
        "none of its languages",
    ]
