"""The loss is exact and holds a chunk of logits at most; so are norms and their gradients."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from xylem.model import objectives
from xylem.model.norms import RMSNorm
from xylem.model.objectives import IGNORED, next_token_loss


def inputs_of(
    B: int, T: int, D: int, V: int, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(B * T + V)
    hidden = torch.randn(B, T, D, generator=generator, dtype=torch.float64)
    head = torch.randn(V, D, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, V, (B, T), generator=generator)
    return hidden.to(dtype).requires_grad_(), head.to(dtype).requires_grad_(), targets


def written_out(
    hidden: Tensor, head: Tensor, targets: Tensor, z_weight: float
) -> tuple[Tensor, Tensor]:
    """The loss by its definition, from all logits, in float64."""
    logits = hidden.double() @ head.double().T
    kept = targets != IGNORED
    nll = logits.logsumexp(-1) - logits.gather(-1, targets.clamp_min(0)[..., None])[..., 0]
    z = logits.logsumexp(-1).square()
    return ((nll + z_weight * z) * kept).sum(), nll * kept


@pytest.mark.parametrize("chunk_values", [7, 40, 1 << 20], ids=["a row", "some rows", "all"])
@pytest.mark.parametrize("z_weight", [0.0, 0.3])
@pytest.mark.parametrize(("B", "T"), [(2, 6), (1, 7), (1, 1)])
def test_the_loss_and_its_gradients_are_exact(
    chunk_values: int, z_weight: float, B: int, T: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objectives, "CHUNK_VALUES", chunk_values)
    monkeypatch.setattr(objectives, "CHUNK_ROWS", {"cpu": 1})
    monkeypatch.setattr(objectives, "BLOCK_VALUES", {"cpu": 2 * 11})
    hidden, head, targets = inputs_of(B, T, 8, 11)
    if T > 2:
        targets[0, 2] = IGNORED
    loss, nll = next_token_loss(hidden, head, targets, z_weight=z_weight)
    wanted, wanted_nll = written_out(hidden, head, targets, z_weight)
    torch.testing.assert_close(nll, wanted_nll)
    torch.testing.assert_close(loss, wanted)
    ours = torch.autograd.grad(loss * 0.5, (hidden, head))
    theirs = torch.autograd.grad(wanted * 0.5, (hidden, head))
    torch.testing.assert_close(ours, theirs)


def test_a_batch_without_targets_has_no_loss_and_no_gradient() -> None:
    hidden, head, targets = inputs_of(2, 6, 8, 11)
    loss, nll = next_token_loss(hidden, head, torch.full_like(targets, IGNORED), z_weight=0.3)
    gradients = torch.autograd.grad(loss, (hidden, head))
    assert loss == 0 and not nll.any() and not any(g.any() for g in gradients)


def test_ignored_positions_say_nothing() -> None:
    hidden, head, targets = inputs_of(2, 6, 8, 11)
    targets[:, 3:] = IGNORED
    loss, nll = next_token_loss(hidden, head, targets, z_weight=0.3)
    alone, nll_alone = next_token_loss(hidden[:, :3], head, targets[:, :3], z_weight=0.3)
    torch.testing.assert_close(loss, alone)
    torch.testing.assert_close(nll[:, :3], nll_alone)
    (gradient,) = torch.autograd.grad(loss, hidden)
    assert not gradient[:, 3:].any() and gradient[:, :3].any()


@pytest.mark.parametrize("autocast", [False, True])
def test_the_loss_in_bf16_is_exact_but_for_its_inputs_rounding(autocast: bool) -> None:
    dtype = torch.float32 if autocast else torch.bfloat16
    hidden, head, targets = inputs_of(2, 64, 32, 200, dtype)
    targets[0, :5] = IGNORED
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        loss, nll = next_token_loss(hidden, head, targets, z_weight=1e-3)
    assert nll.dtype == torch.float32 and loss.dtype == torch.float32
    wanted, wanted_nll = written_out(hidden, head, targets, 1e-3)
    assert (nll - wanted_nll).norm() < 0.005 * wanted_nll.norm()
    assert abs(loss - wanted) < 0.002 * wanted
    ours = torch.autograd.grad(loss, (hidden, head))
    theirs = torch.autograd.grad(wanted, (hidden, head))
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == dtype
        assert (one.double() - other.double()).norm() < 0.02 * other.double().norm()


@pytest.mark.parametrize("wants_gradient", [False, True])
def test_all_logits_are_never_held(wants_gradient: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objectives, "CHUNK_VALUES", 4 * 50)
    monkeypatch.setattr(objectives, "CHUNK_ROWS", {"cpu": 1})
    hidden, head, targets = inputs_of(4, 16, 3, 50, torch.float32)
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            nonlocal largest
            made = function(*args, **(kwargs or {}))
            for tensor in made if isinstance(made, (tuple, list)) else (made,):
                if isinstance(tensor, Tensor):
                    largest = max(largest, tensor.numel())
            return made

    with Watch(), torch.set_grad_enabled(wants_gradient):
        loss, _ = next_token_loss(hidden, head, targets)
        if wants_gradient:
            loss.backward()
    assert largest == 4 * 50


def test_ignored_targets_mean_the_same_in_both_rooms() -> None:
    from xylem.data import packing

    assert packing.IGNORED == IGNORED


DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
    ),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [(3, 5, 16), (1, 1, 1, 16), (0, 16)], ids=str)
def test_rms_norm_and_its_gradients_are_exact(shape: tuple[int, ...], device: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).to(device).requires_grad_()
    norm = RMSNorm(16, 1e-6).to(device)
    with torch.no_grad():
        norm.weight.copy_(torch.randn(16, generator=generator))
    pull = torch.randn(shape, generator=generator).to(device)
    wide = x.double() * (x.double().square().mean(-1, keepdim=True) + 1e-6).rsqrt()
    wanted = wide * norm.weight.double()
    torch.testing.assert_close(norm(x).double(), wanted, atol=2e-6, rtol=2e-6)
    ours = torch.autograd.grad(norm(x), (x, norm.weight), pull)
    theirs = torch.autograd.grad(wanted, (x, norm.weight), pull.double())
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_rms_norm_of_bf16_rounds_once(device: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 128, generator=generator).bfloat16().to(device).requires_grad_()
    norm = RMSNorm(128, 1e-6).to(device)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2.0, generator=generator if device == "cpu" else None)
    y = norm(x)
    wanted = F.rms_norm(x.double(), (128,), norm.weight.double(), 1e-6)
    assert y.dtype == torch.bfloat16
    # Half a unit in bf16's last place, and what float32 adds to it.
    assert ((y.double() - wanted).abs() <= 2**-8 * 1.001 * wanted.abs()).all()
    gradient, weight = torch.autograd.grad(y.sum(), (x, norm.weight))
    assert gradient.dtype == torch.bfloat16 and weight.dtype == torch.float32
