"""Attention: every backend is exact, none lets a document see another, each says what it cannot."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from xylem.model import attention_kernels, causal_tiles
from xylem.model.attention import attention_choice
from xylem.model.attention_backends import (
    BACKENDS,
    Case,
    choose,
    choose_backend,
)
from xylem.model.attention_kernels import packed_flash, packed_varlen
from xylem.model.causal_tiles import causal_attention
from xylem.model.config import LayerPlan, ModelConfig
from xylem.model.documents import (
    document_blocks,
    document_bounds,
    document_mask,
    document_starts,
    equal_lengths,
)
from xylem.model.errors import ModelError

Attend = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(q_BTHK, k_BTGK, v_BTGK, documents_BT) -> y_BTHK."""


def batch_of(rows: list[list[int]]) -> Tensor:
    """Document numbers of rows that are given as lengths; numbers need not grow."""
    return torch.stack([
        torch.cat([torch.full((length,), 7 - i) for i, length in enumerate(row)]) for row in rows
    ])  # fmt: skip


def exact(q: Tensor, k: Tensor, v: Tensor, documents: Tensor) -> Tensor:
    """Attention in float64, one position of one head at a time."""
    q, k, v = q.double(), k.double(), v.double()
    outputs = []
    for b, t, h in torch.cartesian_prod(*map(torch.arange, q.shape[:3])).tolist():
        first = t
        while first and documents[b, first - 1] == documents[b, t]:
            first -= 1
        g = h * k.shape[2] // q.shape[2]
        scores = (k[b, first : t + 1, g] * q[b, t, h]).sum(-1) / q.shape[-1] ** 0.5
        outputs.append((scores.softmax(0)[:, None] * v[b, first : t + 1, g]).sum(0))
    return torch.stack(outputs).view(q.shape)


def tensors(B: int, T: int, H: int, G: int, K: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(B * T + H)
    return [
        torch.randn(B, T, heads, K, generator=generator).requires_grad_() for heads in (H, G, G)
    ]


def of_backend(name: str) -> Attend:
    backend = BACKENDS[name]

    def attend(q: Tensor, k: Tensor, v: Tensor, documents: Tensor) -> Tensor:
        return backend.attend(q, k, v, backend.prepare(document_starts(documents)))

    return attend


def varlen_stand_in(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, longest: int) -> Tensor:
    """What kernels of variable length compute, and what they ask of their arguments."""
    assert bounds.dtype == torch.int32 and bounds.is_contiguous()
    assert all(t.dim() == 3 and t.stride(-1) == 1 for t in (q, k, v))
    assert bounds[0] == 0 and bounds[-1] == len(q) == len(k) == len(v)
    assert longest == bounds.diff().max() and bounds.diff().min() > 0
    attend, outputs = of_backend("reference"), []
    for first, last in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        one = torch.zeros(1, last - first, dtype=torch.int64)
        outputs.append(attend(*(t[None, first:last] for t in (q, k, v)), one)[0])  # type: ignore[call-arg]
    return torch.cat(outputs)


def flash_stand_in(q: Tensor, k: Tensor, v: Tensor, **named: Any) -> tuple[Tensor, None]:
    """`flash_attn_varlen_func` of version 3 and 4, which returns the log-sum-exp too."""
    assert named["causal"] is True
    assert named["deterministic"] is torch.are_deterministic_algorithms_enabled()
    assert named["cu_seqlens_q"] is named["cu_seqlens_k"]
    assert named["max_seqlen_q"] == named["max_seqlen_k"]
    return varlen_stand_in(q, k, v, named["cu_seqlens_q"], named["max_seqlen_q"]), None


def torch_stand_in(
    q: Tensor, k: Tensor, v: Tensor, bounds_q: Tensor, bounds_k: Tensor, max_q: int, max_k: int,
    *, window_size: tuple[int, int], enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """`torch.nn.attention.varlen.varlen_attn`."""
    assert window_size == (-1, 0) and bounds_q is bounds_k and max_q == max_k
    assert enable_gqa == (q.shape[1] != k.shape[1])
    return varlen_stand_in(q, k, v, bounds_q, max_q)


def flash(q: Tensor, k: Tensor, v: Tensor, documents: Tensor) -> Tensor:
    bounds = document_bounds(document_starts(documents))
    return packed_flash(flash_stand_in, q, k, v, bounds)


def varlen(q: Tensor, k: Tensor, v: Tensor, documents: Tensor) -> Tensor:
    bounds = document_bounds(document_starts(documents))
    return packed_varlen(torch_stand_in, q, k, v, bounds)


def tiles(q: Tensor, k: Tensor, v: Tensor, documents: Tensor) -> Tensor:
    """What half precision on a CPU takes, in float32, with many tiles; one document at a time."""
    bounds = document_bounds(document_starts(documents)).cumulative.tolist()
    outputs = [
        causal_attention(*(t.flatten(0, 1)[None, first:last] for t in (q, k, v)))[0]
        for first, last in zip(bounds[:-1], bounds[1:], strict=True)
    ]
    return torch.cat(outputs).view_as(q)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(causal_tiles, "QUERIES", 3)
    monkeypatch.setattr(causal_tiles, "SCORES", 20)


ARMS: dict[str, Attend] = {
    "sdpa": of_backend("sdpa"),
    "documents": of_backend("documents"),
    "tiles": tiles,
    "reference": of_backend("reference"),
    "flash": flash,
    "varlen": varlen,
}
ROWS = {
    "ragged": [[3, 1, 8], [5, 7], [12]],
    "one-token documents": [[1] * 9, [1] * 9],
    "one-token rows": [[1], [1], [1]],
    "whole rows": [[10], [10]],
    "many of few lengths": [[1, 2, 1, 2, 1, 2, 1, 2], [2, 1, 2, 1, 2, 1, 2, 1]],
}


@pytest.mark.parametrize("name", ARMS)
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_backends_and_their_gradients_agree_with_float64(
    name: str, rows: list[list[int]], kv_heads: int
) -> None:
    documents = batch_of(rows)
    inputs = tensors(*documents.shape, 4, kv_heads, 8)
    y, wanted = ARMS[name](*inputs, documents), exact(*inputs, documents)
    torch.testing.assert_close(y.double(), wanted, atol=2e-6, rtol=2e-6)
    pull = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    ours = torch.autograd.grad(y, inputs, pull)
    theirs = torch.autograd.grad(wanted, inputs, pull.double())
    torch.testing.assert_close(ours, theirs, atol=5e-6, rtol=5e-6)


@pytest.mark.parametrize("name", ["sdpa", "documents", "reference"])
@pytest.mark.parametrize("rows", [[[3, 1, 28], [20, 12]], [[64]] * 4], ids=["ragged", "whole"])
def test_backends_in_bf16_are_those_of_float64_to_bf16s_precision(
    name: str, rows: list[list[int]]
) -> None:
    documents = batch_of(rows)
    inputs = [t.detach().bfloat16().requires_grad_() for t in tensors(*documents.shape, 4, 2, 16)]
    y, wanted = ARMS[name](*inputs, documents), exact(*inputs, documents)
    assert y.dtype == torch.bfloat16
    pull = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    ours = torch.autograd.grad(y, inputs, pull)
    theirs = torch.autograd.grad(wanted, inputs, pull.double())
    for one, other in zip((y, *ours), (wanted, *theirs), strict=True):
        assert (one.double() - other.double()).norm() < 0.01 * other.double().norm()


def test_only_batches_of_longer_documents_go_in_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[tuple[int, ...]] = []

    def spy(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        taken.append(tuple(q.shape))
        return causal_attention(q, k, v)

    monkeypatch.setattr(attention_kernels, "causal_attention", spy)
    for rows in ([[64]] * 4, [[64]] * 3, [[63]] * 4, [[520]]):
        inputs = tensors(len(rows), sum(rows[0]), 2, 1, 4)
        ARMS["documents"](*inputs, batch_of(rows))
        assert not taken
        half = [t.detach().bfloat16() for t in inputs]
        assert ARMS["documents"](*half, batch_of(rows)).dtype == torch.bfloat16
        assert bool(taken) == (rows == [[64]] * 4)
        taken.clear()


some_rows = st.integers(1, 16).flatmap(
    lambda T: st.lists(
        st.lists(st.booleans(), min_size=T, max_size=T).map(lambda ends: lengths_of(ends)),
        min_size=1,
        max_size=3,
    )
)


def lengths_of(ends: list[bool]) -> list[int]:
    """Documents' lengths of a row, by which positions end one; the last position always does."""
    lengths, run = [], 0
    for i, end in enumerate(ends):
        run += 1
        if end or i == len(ends) - 1:
            lengths.append(run)
            run = 0
    return lengths


@pytest.mark.parametrize("name", ARMS)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(rows=some_rows, data=st.data())
def test_no_backend_lets_a_document_see_another(
    name: str, rows: list[list[int]], data: st.DataObject
) -> None:
    documents = batch_of(rows)
    B, T = documents.shape
    inputs = tensors(B, T, 4, 2, 8)
    b, t = data.draw(st.integers(0, B - 1)), data.draw(st.integers(0, T - 1))
    starts = document_starts(documents)
    inside = torch.zeros(B, T, dtype=torch.bool)
    inside[b] = starts[b] == starts[b, t]
    seen = inside & (torch.arange(T) >= t)

    before = ARMS[name](*inputs, documents)
    changed = [x.detach().clone() for x in inputs]
    for x in changed:
        x[b, t] += 1
    after = ARMS[name](*changed, documents)
    assert torch.equal(before[~seen], after[~seen])
    assert not torch.isclose(before[seen], after[seen]).all()

    # Nor does what happens outside pull on it.
    before[~inside].sum().backward()
    for x in inputs:
        assert x.grad is not None and not x.grad[inside].any()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(rows=some_rows)
def test_every_form_of_the_bounds_says_the_same(rows: list[list[int]]) -> None:
    documents = batch_of(rows)
    B, T = documents.shape
    starts = document_starts(documents)
    lengths = [length for row in rows for length in row]
    assert starts.tolist() == [
        [sum(row[:i]) for i, length in enumerate(row) for _ in range(length)] for row in rows
    ]
    bounds = document_bounds(starts)
    assert bounds.cumulative.diff().tolist() == lengths and bounds.longest == max(lengths)
    same = documents[:, :, None] == documents[:, None, :]
    assert torch.equal(document_mask(starts)[:, 0], same & torch.ones(T, T).tril().bool())
    made = equal_lengths(starts)
    order = range(B * T) if made.order_N is None else made.order_N.tolist()
    number = [i for i, length in enumerate(lengths) for _ in range(length)]
    groups = iter(order)
    documents_seen = []
    for count, length in made.groups:
        for _ in range(count):
            tokens = [next(groups) for _ in range(length)]
            assert tokens == list(range(tokens[0], tokens[0] + length))
            assert {number[token] for token in tokens} == {number[tokens[0]]}
            documents_seen.append(number[tokens[0]])
    assert sorted(documents_seen) == list(range(len(lengths)))


@pytest.mark.parametrize("T", [1, 100, 128, 300, 512])
def test_flex_reads_the_blocks_that_pytorch_finds_in_the_full_mask(T: int) -> None:
    generator = torch.Generator().manual_seed(T)
    documents = (torch.rand(3, T, generator=generator) < 0.02).cumsum(1)
    documents[0] = 0
    ours = document_blocks(document_starts(documents))
    mask = document_mask(document_starts(documents))[:, 0]
    theirs = create_block_mask(lambda b, h, q, k: mask[b, q, k], 3, None, T, T, device="cpu")
    for name in ("kv", "full_kv", "q", "full_q"):
        counts, wanted = (getattr(m, f"{name}_num_blocks") for m in (ours, theirs))
        assert torch.equal(counts, wanted), name
        columns, expected = (getattr(m, f"{name}_indices") for m in (ours, theirs))
        for where in torch.cartesian_prod(*map(torch.arange, counts.shape)).tolist():
            some = (*where, slice(int(counts[tuple(where)])))
            assert columns[some].tolist() == expected[some].tolist(), name


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_computes_what_its_mask_says() -> None:
    documents = batch_of(ROWS["ragged"])
    q, k, v = (t.detach() for t in tensors(3, 12, 4, 2, 16))
    blocks = document_blocks(document_starts(documents))
    heads_first = [t.transpose(1, 2) for t in (q, k, v)]
    # Uncompiled it is PyTorch's own reference; its kernels are tested where there is a GPU.
    y = flex_attention(*heads_first, block_mask=blocks, enable_gqa=True).transpose(1, 2)
    torch.testing.assert_close(y.double(), exact(q, k, v, documents), atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("name", [n for n in BACKENDS if n not in ("sdpa", "reference")])
def test_only_masks_are_quadratic_in_the_row(name: str) -> None:
    T = 2048
    starts = document_starts(torch.arange(T).div(100, rounding_mode="floor").expand(2, T))
    prepared = BACKENDS[name].prepare(starts)
    if name == "flex":
        prepared = [t for t in prepared.as_tuple() if isinstance(t, Tensor)]
    elif name == "documents":
        prepared = [prepared.order_N, prepared.places_N]
    assert all(t.numel() <= 2 * T for t in prepared if isinstance(t, Tensor))


def case(**changes: Any) -> Case:
    settings: dict[str, Any] = {
        "device": "cuda", "capability": (9, 0), "dtype": torch.bfloat16,
        "heads": 8, "kv_heads": 2, "head_dim": 64,
    }  # fmt: skip
    return Case(**{**settings, **changes})


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if every package of kernels were there."""
    choose.cache_clear()
    monkeypatch.setattr(attention_kernels, "flash_kernel", lambda capability: flash_stand_in)
    monkeypatch.setattr(attention_kernels, "flash4_kernel", lambda: flash_stand_in)
    monkeypatch.setattr(attention_kernels, "varlen_kernel", lambda grouped: torch_stand_in)
    yield
    choose.cache_clear()


CPU = {"device": "cpu", "capability": (0, 0)}


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("flash", CPU, "needs a CUDA device, not cpu"),
        ("flash4", CPU, "needs a CUDA device, not cpu"),
        ("varlen", CPU, "needs a CUDA device, not cpu"),
        ("flex", CPU, "has no backward pass on the CPU"),
        ("flash", {"capability": (7, 5)}, "compute capability 8.0 or newer"),
        ("flash4", {"capability": (8, 9)}, "compute capability 9.0 or newer"),
        ("flash", {"dtype": torch.float32}, "float16, bfloat16 only: engine.precision=bf16"),
        ("varlen", {"dtype": torch.float32}, "float16, bfloat16 only"),
        ("flex", {"dtype": torch.float64}, "float16, bfloat16, float32 only"),
        ("flash", {"head_dim": 264}, "multiples of 8 up to 256"),
        ("flash4", {"head_dim": 68}, "multiples of 8 up to 256"),
        ("flash4", {"head_dim": 192, "capability": (10, 0)}, "up to 128, and 256"),
        ("varlen", {"head_dim": 12}, "multiples of 8 up to 256"),
        ("flex", {"head_dim": 8}, "has kernels for head sizes from 16"),
    ],
)
def test_a_named_backend_that_cannot_do_it_says_so(
    name: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError) as error:
        choose(name, case(**changes))
    text = str(error.value)
    assert text.startswith(f"model.attention={name} cannot run (") and message in text
    assert "model.attention=auto" in text and "\n" not in text


@pytest.mark.parametrize(
    ("name", "way_out"),
    [("flash", "pip install 'xylem[flash]'"), ("flash4", "pip install 'xylem[flash4]'")],
)
def test_a_named_backend_without_its_package_says_what_to_install(
    name: str, way_out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_kernels, "flash_kernel", lambda capability: None)
    monkeypatch.setattr(attention_kernels, "flash4_kernel", lambda: None)
    with pytest.raises(ModelError, match=name) as error:
        choose(name, case())
    assert way_out in str(error.value)


def test_a_backend_nobody_knows_is_refused_with_the_known_ones() -> None:
    plan = (LayerPlan(trunk_width=8),)
    sizes: dict[str, Any] = {"vocab_size": 9, "hidden_size": 8, "heads": 2, "kv_heads": 1}
    with pytest.raises(ModelError, match="known are auto, flash, flash4, varlen, flex, sdpa"):
        ModelConfig(**sizes, head_dim=8, layer_plan=plan, attention="fast")  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="known are auto, flash"):
        choose("fast", case())


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("changes", "chosen"),
    [
        (CPU, "documents"),
        ({**CPU, "dtype": torch.float64}, "documents"),
        ({"device": "mps"}, "sdpa"),
        ({}, "flash"),
        ({"capability": (10, 0)}, "flash4"),
        ({"capability": (10, 0), "head_dim": 192}, "flash"),
        ({"capability": (8, 0)}, "flash"),
        ({"dtype": torch.float32}, "flex"),
        ({"dtype": torch.float32, "head_dim": 8}, "sdpa"),
        ({"head_dim": 300}, "flex"),
        ({"capability": (7, 5)}, "sdpa"),
    ],
)
def test_auto_takes_the_first_that_can_and_says_why(changes: dict[str, Any], chosen: str) -> None:
    choice = choose("auto", case(**changes))
    assert choice.name == chosen and choice.backend is BACKENDS[chosen]
    assert str(choice).startswith(f"{chosen} (auto for {case(**changes)}")
    assert "\n" not in str(choice)


def test_auto_falls_back_to_pytorchs_kernel_where_nothing_is_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    choose.cache_clear()
    monkeypatch.setattr(attention_kernels, "flash_kernel", lambda capability: None)
    monkeypatch.setattr(attention_kernels, "flash4_kernel", lambda: None)
    choice = choose("auto", case())
    choose.cache_clear()
    assert choice.name == "varlen" and "flash needs flash-attn" in choice.why


def test_pytorchs_kernel_of_this_version_takes_what_we_pass() -> None:
    assert attention_kernels.varlen_kernel(True) is not None


def test_the_choice_follows_autocast() -> None:
    sizes: dict[str, Any] = {"vocab_size": 9, "hidden_size": 8, "heads": 2, "kv_heads": 1}
    config = ModelConfig(**sizes, head_dim=8, layer_plan=(LayerPlan(trunk_width=8),))
    cpu = torch.device("cpu")
    assert "float32" in attention_choice(config, cpu, torch.float32).why
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert "bfloat16" in attention_choice(config, cpu, torch.float32).why
        assert "float64" in attention_choice(config, cpu, torch.float64).why


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", [n for n in BACKENDS if n != "reference"])
@pytest.mark.parametrize("kv_heads", [2, 4])
def test_backends_on_the_gpu_agree_with_float64(name: str, kv_heads: int) -> None:
    cuda, dtype = torch.device("cuda"), torch.bfloat16
    try:
        backend = choose_backend(
            name, device=cuda, dtype=dtype, heads=4, kv_heads=kv_heads, head_dim=64
        ).backend
    except ModelError as refusal:
        pytest.skip(str(refusal))
    documents = batch_of([[1, 130, 69], [100, 100], [200]]).to(cuda)
    inputs = [t.detach().to(cuda, dtype).requires_grad_() for t in tensors(3, 200, 4, kv_heads, 64)]
    starts = document_starts(documents)
    y = backend.attend(*inputs, backend.prepare(starts))
    mask = document_mask(starts)
    wanted = BACKENDS["reference"].attend(*(t.double() for t in inputs), mask)
    pull = torch.randn_like(y)
    ours = torch.autograd.grad(y, inputs, pull)
    theirs = torch.autograd.grad(wanted, inputs, pull.double())
    for one, other in zip((y, *ours), (wanted, *theirs), strict=True):
        assert (one.double() - other.double()).norm() < 0.01 * other.double().norm()
    changed = [x.detach().clone() for x in inputs]
    for x in changed:
        x[0, 50] += 1
    after = backend.attend(*changed, backend.prepare(starts))
    assert torch.equal(after[0, 131:], y[0, 131:]) and torch.equal(after[1:], y[1:])
