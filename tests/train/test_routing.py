"""A step's routing in training: what moves, what stays, what a resume restores, what is refused."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from xylem.data.manifest import Manifest
from xylem.data.token_line import TokenLine
from xylem.model.config import LayerPlan, ModelConfig, RouterName, RoutingConfig
from xylem.model.decoder import Decoder, DecoderExtras, build_decoder
from xylem.model.noise import row_keys
from xylem.model.routers import FamilySegment, TokenRouter
from xylem.train.compose import compose_config
from xylem.train.config import EngineConfig
from xylem.train.engines.processes import Processes
from xylem.train.engines.torch import forget_unmoved
from xylem.train.evaluation import evaluation_rows
from xylem.train.loop import pretrain
from xylem.train.metrics import read_metrics
from xylem.train.optimizer import OptimConfig, Optimizers
from xylem.train.routing import StepRouting
from xylem.train.run_folder import open_run

from ..conftest import Prepared, run_settings, train_losses

FAMILIES = ("alpha", "beta", "gamma")
EVERYTHING = (
    "model.routing.expert_masking=0.2",
    "model.routing.tag_dropout=0.3",
    "model.routing.gate=true",
    "model.routing.gate_budget=0.6",
    "model.routing.global_loss=0.01",
    "model.routing.shared_experts=1",
)


def routed(router: str, *more: str) -> tuple[str, ...]:
    """Settings of a run whose first and last layer route by token."""
    expert = f"{{trunk_width:48,expert_width:16,router:{router}}}"
    return (f"model.layer_plan=[{expert},{{trunk_width:64}},{expert}]", *more)


def build(router: RouterName = "prior", **routing: object) -> Decoder:
    config = ModelConfig(
        vocab_size=97, hidden_size=32, heads=4, kv_heads=2, head_dim=8, init_std=0.2,
        layer_plan=(LayerPlan(repeat=2, trunk_width=32, expert_width=8, router=router),),
        routing=RoutingConfig(**routing),  # type: ignore[arg-type]
    )  # fmt: skip
    return build_decoder(config, FAMILIES, seed=1)


@pytest.fixture(scope="module")
def engine() -> Processes:
    return Processes(EngineConfig(precision="fp32"))


def run_step(
    decoder: Decoder,
    engine: Processes,
    routing: StepRouting,
    families: tuple[str, ...],
    *,
    step: int = 0,
    micro_rows: int = 2,
) -> Tensor:
    """Forward, backward and gathering over two rows of each family, in micro-batches."""
    rows = [name for name in families for _ in range(2)]
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(0, 97, (len(rows), 16), generator=generator)
    keys = row_keys(0, step, torch.arange(len(rows)))
    total = torch.zeros(())
    for first in range(0, len(rows), micro_rows):
        part = slice(first, first + micro_rows)
        segments = [FamilySegment(name, i, i + 1) for i, name in enumerate(rows[part])]
        extras = DecoderExtras()
        hidden = decoder(
            tokens[part], torch.zeros_like(tokens[part]), segments, keys_B=keys[part], extras=extras
        )
        loss = (hidden.square().sum() + hidden[..., 0].sum()) / tokens.numel()
        if extras.auxiliary is not None:
            loss = loss + extras.auxiliary / tokens.numel()
        loss.backward()
        total += loss.detach()
        routing.add(tokens, extras, 16)
    routing.gather(step)
    forget_unmoved(decoder, routing.touched(families))
    return total


def everything(decoder: Decoder, optimizers: Optimizers) -> dict[str, Tensor]:
    state = {name: tensor.clone() for name, tensor in decoder.state_dict().items()}
    for name, key, value in optimizers.state():
        state[f"{name}/{key}"] = value.clone()
    return state


def changed(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> set[str]:
    return {name for name in after if name not in before or not before[name].equal(after[name])}


@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
def test_experts_without_a_token_keep_weights_and_optimiser_state(
    optimiser: str, engine: Processes
) -> None:
    """Beta has tokens in the first step and none in the second; momentum must not move it."""
    decoder = build(
        prior_smoothing=0.0, tag_dropout=0.0, experts_per_family=3, balance="bias", bias_rate=0.1
    )
    routing = StepRouting(decoder, engine)
    optimizers = Optimizers(decoder, OptimConfig(name=optimiser, warmup_steps=0), 10)  # type: ignore[arg-type]
    run_step(decoder, engine, routing, FAMILIES)
    optimizers.step(0)
    routing.move()
    before = everything(decoder, optimizers)
    run_step(decoder, engine, routing, ("alpha", "gamma"), step=1)
    optimizers.step(1)
    routing.move()
    moved = changed(before, everything(decoder, optimizers))
    of_beta = {name for name in before if ".beta" in name}
    # The head's row has a gradient from every family's text; that of "not beta".
    assert {name.partition("/")[0] for name in moved & of_beta} == {"family_head.rows.beta"} | {
        f"layers.{n}.feed_forward.router.experts.beta.load" for n in range(2)
    }
    for part in (
        "experts.alpha.down",
        "router.experts.alpha.weight",
        "router.experts.alpha.balance",
    ):
        assert f"layers.1.feed_forward.{part}" in moved


@pytest.mark.parametrize(
    ("routing", "moves"),
    [({}, False), ({"z_loss": 0.1}, True), ({"global_loss": 0.1}, True),
     ({"normalised": False}, True), ({"sequence_loss": 0.1}, False),
     ({"sequence_loss": 0.1, "balance_target": "uniform"}, True)],
)  # fmt: skip
def test_a_familys_rows_move_in_every_step_only_if_they_have_a_gradient_in_every_step(
    routing: dict[str, object], moves: bool, engine: Processes
) -> None:
    decoder = build(prior_smoothing=1e-30, tag_dropout=0.0, **routing)
    step = StepRouting(decoder, engine)
    run_step(decoder, engine, step, FAMILIES)
    step.move()
    for parameter in decoder.parameters():
        parameter.grad = None
    for module in decoder.modules():  # beta is never chosen
        if isinstance(module, TokenRouter):
            module.experts["beta"].balance.fill_(1e4)  # type: ignore[operator]
    run_step(decoder, engine, step, ("alpha", "gamma"), step=1)
    router = decoder.layers[0].feed_forward.router  # type: ignore[union-attr]
    gradient = router.experts["beta"].weight.grad  # type: ignore[union-attr]
    assert (gradient is not None) == moves
    expert = decoder.layers[0].feed_forward.experts["beta"]  # type: ignore[union-attr]
    assert expert.down.grad is None  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("group", "sequence_loss", "rows"),
    [("shared", 0.0, False), ("shared", 0.1, True), ("beta", 0.0, False), ("beta", 0.1, True)],
)
def test_a_group_that_no_token_chose_stands_still_though_its_text_is_there(
    group: str, sequence_loss: float, rows: bool, engine: Processes
) -> None:
    """Unless a loss within sequences pulls on its rows: that is how it comes back."""
    decoder = build(
        prior_smoothing=1e-30, tag_dropout=0.0, shared_experts=2, sequence_loss=sequence_loss
    )
    for module in decoder.modules():
        if isinstance(module, TokenRouter):
            of_group = module.shared if group == "shared" else module.experts[group]
            of_group.balance.fill_(1e4)  # type: ignore[union-attr, operator]
    run_step(decoder, engine, StepRouting(decoder, engine), FAMILIES)
    block = decoder.layers[0].feed_forward
    if group == "shared":
        router_rows, experts = block.router.shared, block.shared_experts  # type: ignore[union-attr]
    else:
        router_rows = block.router.experts[group]  # type: ignore[union-attr]
        experts = block.experts[group]  # type: ignore[union-attr]
    assert experts.down.grad is None  # type: ignore[union-attr]
    assert (router_rows.weight.grad is not None) == rows  # type: ignore[union-attr]


def test_biases_of_domain_come_back_from_above_zero(engine: Processes) -> None:
    decoder = build("domain")
    routing = StepRouting(decoder, engine)
    router = decoder.layers[0].feed_forward.router  # type: ignore[union-attr]
    with torch.no_grad():
        router.experts["beta"].bias.copy_(torch.tensor([0.5, -0.5]))  # type: ignore[union-attr]
    run_step(decoder, engine, routing, FAMILIES)
    routing.move()
    assert router.experts["beta"].bias.tolist() == [0.0, -0.5]  # type: ignore[union-attr]
    run_step(decoder, engine, routing, FAMILIES, step=1)
    assert router.experts["beta"].bias.grad[0] != 0  # type: ignore[union-attr]


@pytest.mark.parametrize("balance", ["bias", "quantile"])
def test_micro_batches_change_neither_gradients_nor_balance(
    balance: str, engine: Processes
) -> None:
    settings: dict[str, object] = {
        "balance": balance, "shared_experts": 1, "expert_masking": 0.2, "gate": True,
        "tag_dropout": 0.3, "sequence_loss": 0.1, "global_loss": 0.1, "z_loss": 0.01,
    }  # fmt: skip
    made = []
    for micro_rows in (6, 2, 1):
        decoder = build(**settings)
        routing, losses = StepRouting(decoder, engine), []
        for step in range(3):
            decoder.zero_grad()
            losses.append(
                run_step(decoder, engine, routing, FAMILIES, step=step, micro_rows=micro_rows)
            )
            gradients = {n: p.grad for n, p in decoder.named_parameters() if p.grad is not None}
            routing.move()
        made.append((torch.stack(losses), gradients, dict(decoder.named_buffers())))
    for losses, gradients, buffers in made[1:]:
        torch.testing.assert_close(losses, made[0][0], rtol=1e-6, atol=1e-6)
        assert gradients.keys() == made[0][1].keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, made[0][1][name], rtol=1e-4, atol=1e-6)
        assert changed(made[0][2], buffers) == set()
        assert any(t.abs().sum() > 0 for n, t in buffers.items() if n.endswith(".balance"))


def test_targets_of_a_step_follow_its_mixture(engine: Processes) -> None:
    """Alpha has twice gamma's tokens; beta none: its experts are wanted for nothing."""
    decoder = build(balance="bias", bias_rate=0.5)
    routing = StepRouting(decoder, engine)
    run_step(decoder, engine, routing, ("alpha", "alpha", "gamma"))
    counts = {number: choices.sum(0) for number, choices in routing.choices_FE.items()}
    routing.move()
    for number, counts_E in counts.items():
        router = decoder.layers[number].feed_forward.router  # type: ignore[union-attr]
        assert isinstance(router, TokenRouter)
        targets_E = torch.tensor([64.0, 64, 0, 0, 32, 32])  # of 4 x 16 and 2 x 16 tokens, K = 2
        assert counts_E.sum() == targets_E.sum()
        wanted_E = 0.5 * torch.sign(counts_E - targets_E) * (targets_E > 0)
        torch.testing.assert_close(router.balance_E, wanted_E)
        expected_E = torch.where(targets_E > 0, counts_E / targets_E, 1.0)
        torch.testing.assert_close(router.load_E, expected_E)


def test_budgets_pull_by_the_sign_of_a_familys_mean_gate(engine: Processes) -> None:
    decoder = build("topk", gate=True, gate_budget=0.0, family_budgets={"gamma": 1.0})
    routing = StepRouting(decoder, engine)
    run_step(decoder, engine, routing, ("alpha", "gamma"))
    routing.move()
    pulls = [layer.feed_forward.budget_pull_F.tolist() for layer in decoder.layers]  # type: ignore[union-attr]
    assert pulls == [[1.0, 0.0, -1.0]] * 2  # beta has no token yet


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_name_layer_and_step(value: float, engine: Processes) -> None:
    decoder = build("topk")
    with torch.no_grad():
        decoder.layers[1].feed_forward.router.experts["gamma"].weight[1, 0] = value  # type: ignore[union-attr]
    told = "router of layer 1 had NaN or infinite logits for 96 tokens at step 42"
    with pytest.raises(FloatingPointError, match=told) as stop:
        run_step(decoder, engine, StepRouting(decoder, engine), FAMILIES, step=41)
    assert "\n" not in str(stop.value)


Trained = Callable[..., Path]


@pytest.fixture
def train(prepared: Prepared, tmp_path: Path) -> Trained:
    """Trains a run in this process and returns its folder."""

    def run(name: str, *settings: str) -> Path:
        pretrain(compose_config(run_settings(prepared, tmp_path, name, *settings)))
        return tmp_path / name

    return run


@pytest.mark.parametrize("balance", ["bias", "quantile"])
def test_resumed_equals_uninterrupted_bit_for_bit(balance: str, train: Trained) -> None:
    settings = (
        *routed("prior", *EVERYTHING), f"model.routing.balance={balance}", "run.steps=8",
        "checkpoint.every=4",
    )  # fmt: skip
    run = train("run", *settings)
    losses = train_losses(run)
    last = run / "checkpoints" / "step-8"
    whole = {file.name: file.read_bytes() for file in last.glob("*.safetensors")}
    (run / "checkpoints" / "latest").write_text("step-4\n")  # as if step 8 had never been saved
    train("run", *settings)
    assert [row["step"] for row in read_metrics(run, "start")] == [0, 4]
    assert train_losses(run) == losses
    assert {file.name: file.read_bytes() for file in last.glob("*.safetensors")} == whole


def test_a_familys_file_holds_its_balance_and_its_row_of_the_head(train: Trained) -> None:
    settings = routed("prior", *EVERYTHING, "model.routing.balance=bias", "run.steps=2")
    run = train("run", *settings)
    checkpoint = run / "checkpoints" / "step-2"
    family = load_file(min(checkpoint.glob("family-*.safetensors")))
    parts = {name.rpartition(".")[2] for name in family if ".router." in name}
    assert parts == {"weight", "balance", "load"}
    assert sum(name.startswith("family_head.rows.") for name in family) == 1
    trunk = load_file(checkpoint / "trunk.safetensors").keys()
    assert "layers.0.feed_forward.router.shared.balance" in trunk
    assert any(name.endswith(".budget_pull") for name in family)
    assert not any("budget_pull" in name for name in trunk)


def test_a_run_teaches_the_head_to_name_the_family_of_held_out_text(train: Trained) -> None:
    run = train("run", *routed("prior", "run.steps=40", "optim.warmup_steps=5"))
    opened = open_run(run)
    right, tokens = 0, 0
    for entry in opened.manifest.languages.values():
        line = TokenLine(opened.storage, entry.heldout)
        for inputs, _, documents in evaluation_rows(line, 32, 0, 500):
            extras, held = DecoderExtras(), int((documents >= 0).sum())
            opened.decoder(
                torch.from_numpy(inputs[:held])[None], torch.from_numpy(documents[:held])[None],
                (FamilySegment(entry.family, 0, 1),), extras=extras,
            )  # fmt: skip
            assert extras.head_right is not None
            right, tokens = right + int(extras.head_right), tokens + held
    assert right / tokens > 0.8, right / tokens


@pytest.mark.parametrize("router", ["topk", "hybrid", "hybrid_published", "domain"])
def test_every_router_trains(router: str, train: Trained) -> None:
    losses = train_losses(train("run", *routed(router, "run.steps=6", "optim.warmup_steps=1")))
    assert losses[-1] < losses[0]


def test_domain_rows_begin_a_run_and_are_not_needed_again(
    prepared: Prepared, train: Trained, tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    families = Manifest.load(prepared.folder).families
    rows = {name: torch.randn(64) for name in families}
    save_file(rows, tmp_path / "rows.safetensors")
    settings = routed("domain", f"model.routing.domain_rows={tmp_path}/rows.safetensors")
    run = train("run", *settings, "run.steps=1", "optim.learning_rate=0")
    for family in families:
        held = load_file(run / "checkpoints" / "step-1" / f"family-{family}.safetensors")
        for layer in (0, 2):
            weight = held[f"layers.{layer}.feed_forward.router.experts.{family}.weight"]
            assert torch.equal(weight, rows[family].expand(2, 64))
    (tmp_path / "rows.safetensors").unlink()
    train("run", *settings, "run.steps=1", "optim.learning_rate=0")
