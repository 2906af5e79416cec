# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""The routed experts on CUDA: products that gather their own rows, with SwiGLU where they end.

Rows are choices sorted by expert. A tile holds rows of one expert, and programs of one tile are
neighbours, so that its rows and its expert's weights are read from memory once. Forward: gate and
up from gathered tokens, weighted SwiGLU at the end; down; a gather that sums each token's choices.
Backward: d_hidden from gathered gradients, ended by SwiGLU's derivative, the hidden units once more
and the choices' weights' gradient; d_x; both weights' gradients, over an expert's rows. Kept are
x, gate and up. Nothing waits for the device, and every sum has a fixed order.
Shapes: N tokens, K choices of each, S = N K, D model, F hidden units, E experts, T tiles.
`../experts.py` has the same in plain PyTorch, which tests hold this to.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..choices import SortedChoices, in_order


@dataclass(frozen=True, slots=True)
class Tile:
    """Sizes of the blocks that a program multiplies; powers of two of at least 16."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int

    def options(self, dtype: torch.dtype) -> dict[str, Any]:
        """Compile-time arguments of a kernel. Products in float32 are not rounded to TF32."""
        return {
            "ROWS": self.rows, "COLUMNS": self.columns, "DEPTH": self.depth,
            "PRECISION": "ieee" if dtype == torch.float32 else "tf32",
            "num_warps": self.warps, "num_stages": self.stages,
        }  # fmt: skip


HALF = Tile(rows=128, columns=128, depth=64, warps=8, stages=3)
SINGLE = Tile(rows=64, columns=64, depth=32, warps=4, stages=2)


def tile_of(dtype: torch.dtype) -> Tile:
    """The tile for a dtype."""
    return HALF if dtype.itemsize == 2 else SINGLE


@triton.jit
def _matrix(addresses, expert, like, ALIGNED: tl.constexpr):
    """Pointer to an expert's matrix; the groups' weights are separate tensors."""
    matrix = tl.load(addresses + expert).to(tl.pointer_type(like.dtype.element_ty))
    if ALIGNED:
        matrix = tl.multiple_of(matrix, 16)
    return matrix


@triton.jit
def _product(
    rows, inside, columns, there, depth_stride, size,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Sum over `size` of a row's elements, side by side, times a column's, `depth_stride` apart."""
    total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    steps = tl.arange(0, DEPTH)
    for first in range(0, size, DEPTH):
        deep = first + steps
        a = tl.load(rows[:, None] + deep[None, :], mask=inside[:, None] & (deep < size)[None, :],
                    other=0.0)  # fmt: skip
        b = tl.load(columns[None, :] + deep[:, None] * depth_stride,
                    mask=there[None, :] & (deep < size)[:, None], other=0.0)  # fmt: skip
        total = tl.dot(a, b, total, input_precision=PRECISION)
    return total


@triton.jit
def _up_kernel(
    x, tokens, weights, addresses, gate_up, hidden, tile_experts, tile_rows, ends, experts, D, F,
    ALIGNED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """gate_up[s] = W x[token(s)], hidden[s] = weight(s) silu(gate) up."""
    blocks = tl.cdiv(F, COLUMNS)
    tile = tl.program_id(0) // blocks
    expert = tl.load(tile_experts + tile)
    if expert == experts:
        return
    rows = tl.load(tile_rows + tile) + tl.arange(0, ROWS)
    inside = rows < tl.load(ends + expert)
    from_rows = x + tl.load(tokens + rows, mask=inside, other=0) * D
    units = (tl.program_id(0) % blocks) * COLUMNS + tl.arange(0, COLUMNS)
    there = units < F
    gates = _matrix(addresses, expert, x, ALIGNED) + units * D
    gate = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    up = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    steps = tl.arange(0, DEPTH)
    for first in range(0, D, DEPTH):
        deep = first + steps
        a = tl.load(from_rows[:, None] + deep[None, :],
                    mask=inside[:, None] & (deep < D)[None, :], other=0.0)  # fmt: skip
        b = gates[None, :] + deep[:, None]
        present = there[None, :] & (deep < D)[:, None]
        gate_weights = tl.load(b, mask=present, other=0.0)
        gate = tl.dot(a, gate_weights, gate, input_precision=PRECISION)
        up_weights = tl.load(b + F * D, mask=present, other=0.0)
        up = tl.dot(a, up_weights, up, input_precision=PRECISION)
    weight = tl.load(weights + rows, mask=inside, other=0.0)[:, None]
    present = inside[:, None] & there[None, :]
    to = rows.to(tl.int64)[:, None] * (2 * F) + units[None, :]
    tl.store(gate_up + to, gate.to(x.dtype.element_ty), mask=present)
    tl.store(gate_up + to + F, up.to(x.dtype.element_ty), mask=present)
    value = weight * gate * tl.sigmoid(gate) * up
    to = rows.to(tl.int64)[:, None] * F + units[None, :]
    tl.store(hidden + to, value.to(x.dtype.element_ty), mask=present)


@triton.jit
def _rows_kernel(
    a, addresses, out, tile_experts, tile_rows, ends, experts, size, width, column_stride,
    depth_stride, ALIGNED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out[s] = W a[s], with W read by the strides given."""
    blocks = tl.cdiv(width, COLUMNS)
    tile = tl.program_id(0) // blocks
    expert = tl.load(tile_experts + tile)
    if expert == experts:
        return
    rows = (tl.load(tile_rows + tile) + tl.arange(0, ROWS)).to(tl.int64)
    inside = rows < tl.load(ends + expert)
    columns = (tl.program_id(0) % blocks) * COLUMNS + tl.arange(0, COLUMNS)
    there = columns < width
    total = _product(
        a + rows * size, inside,
        _matrix(addresses, expert, a, ALIGNED) + columns * column_stride, there,
        depth_stride, size, ROWS, COLUMNS, DEPTH, PRECISION,
    )  # fmt: skip
    tl.store(
        out + rows[:, None] * width + columns[None, :], total.to(a.dtype.element_ty),
        mask=inside[:, None] & there[None, :],
    )  # fmt: skip


@triton.jit
def _hidden_backward_kernel(
    dy, tokens, weights, addresses, gate_up, d_gate_up, hidden, d_weights, tile_experts, tile_rows,
    ends, experts, D, F, ALIGNED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """d_hidden = W^T dy[token(s)], and from it all that SwiGLU's derivative gives."""
    blocks = tl.cdiv(F, COLUMNS)
    tile = tl.program_id(0) // blocks
    block = tl.program_id(0) % blocks
    expert = tl.load(tile_experts + tile)
    if expert == experts:
        return
    rows = (tl.load(tile_rows + tile) + tl.arange(0, ROWS)).to(tl.int64)
    inside = rows < tl.load(ends + expert)
    units = block * COLUMNS + tl.arange(0, COLUMNS)
    there = units < F
    d_hidden = _product(
        dy + tl.load(tokens + rows, mask=inside, other=0) * D, inside,
        _matrix(addresses, expert, dy, ALIGNED) + units, there,
        F, D, ROWS, COLUMNS, DEPTH, PRECISION,
    )  # fmt: skip
    present = inside[:, None] & there[None, :]
    at = rows[:, None] * (2 * F) + units[None, :]
    gate = tl.load(gate_up + at, mask=present, other=0.0).to(tl.float32)
    up = tl.load(gate_up + at + F, mask=present, other=0.0).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    silu = gate * sigmoid
    part = tl.sum(d_hidden * silu * up, axis=1)
    tl.store(d_weights + rows * blocks + block, part, mask=inside)
    weight = tl.load(weights + rows, mask=inside, other=0.0)[:, None]
    value = weight * silu * up
    tl.store(
        hidden + rows[:, None] * F + units[None, :], value.to(dy.dtype.element_ty),
        mask=present,
    )  # fmt: skip
    d_hidden *= weight
    d_gate = d_hidden * up * sigmoid * (1.0 + gate * (1.0 - sigmoid))
    tl.store(d_gate_up + at, d_gate.to(dy.dtype.element_ty), mask=present)
    tl.store(d_gate_up + at + F, (d_hidden * silu).to(dy.dtype.element_ty), mask=present)


@triton.jit
def _weights_kernel(
    a, b, tokens, ends, out, height, width, GATHER_A: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out[e] = sum over e's choices of a[s] b[s]^T; one of the two is gathered by token."""
    across, down = tl.cdiv(width, COLUMNS), tl.cdiv(height, ROWS)
    block = tl.program_id(0) % (across * down)
    expert = tl.program_id(0) // (across * down)
    rows = (block // across) * ROWS + tl.arange(0, ROWS)
    columns = (block % across) * COLUMNS + tl.arange(0, COLUMNS)
    stop = tl.load(ends + expert)
    start = tl.load(ends + expert - 1, mask=expert > 0, other=0)
    total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for first in range(start, stop, DEPTH):
        choices = first + tl.arange(0, DEPTH).to(tl.int64)
        inside = choices < stop
        sources = tl.load(tokens + choices, mask=inside, other=0)
        from_a = sources if GATHER_A else choices
        from_b = choices if GATHER_A else sources
        left = tl.load(a + from_a[None, :] * height + rows[:, None],
                       mask=inside[None, :] & (rows < height)[:, None], other=0.0)  # fmt: skip
        right = tl.load(b + from_b[:, None] * width + columns[None, :],
                        mask=inside[:, None] & (columns < width)[None, :], other=0.0)  # fmt: skip
        total = tl.dot(left, right, total, input_precision=PRECISION)
    to = (expert.to(tl.int64) * height + rows)[:, None] * width + columns[None, :]
    present = (rows < height)[:, None] & (columns < width)[None, :]
    tl.store(out + to, total.to(a.dtype.element_ty), mask=present)


@triton.jit
def _sum_kernel(out, places, y, width, K: tl.constexpr, COLUMNS: tl.constexpr):
    """y[n] = sum over k of out[places[n, k]]."""
    blocks = tl.cdiv(width, COLUMNS)
    token = (tl.program_id(0) // blocks).to(tl.int64)
    columns = (tl.program_id(0) % blocks) * COLUMNS + tl.arange(0, COLUMNS)
    there = columns < width
    total = tl.zeros((COLUMNS,), dtype=tl.float32)
    for k in tl.static_range(K):
        place = tl.load(places + token * K + k)
        total += tl.load(out + place * width + columns, mask=there, other=0.0).to(tl.float32)
    tl.store(y + token * width + columns, total.to(y.dtype.element_ty), mask=there)


@dataclass(frozen=True, slots=True)
class Tiles:
    """The tiles that cover every expert's rows; those too many bear the number E."""

    experts_T: Tensor
    rows_T: Tensor
    """A tile's first row."""


def cover(ends_E: Tensor, choices: int, rows: int) -> Tiles:
    """Tiles of so many rows over all experts, as many as any split of the choices needs."""
    counts_E = ends_E.diff(prepend=ends_E.new_zeros(1))
    tiles_E = (counts_E + rows - 1) // rows
    last_E = tiles_E.cumsum(0)
    numbers_T = torch.arange(choices // rows + len(ends_E), device=ends_E.device)
    experts_T = torch.searchsorted(last_E, numbers_T, right=True)
    at_T = experts_T.clamp_max(len(ends_E) - 1)
    first_E, start_E = last_E - tiles_E, ends_E - counts_E
    return Tiles(experts_T, start_E[at_T] + (numbers_T - first_E[at_T]) * rows)


def addresses(matrices: Sequence[Tensor], device: torch.device) -> tuple[Tensor, bool]:
    """Where each expert's matrix begins in memory, and whether all begin at 16 bytes."""
    begins = [
        matrix.data_ptr() + number * matrix.stride(0) * matrix.element_size()
        for matrix in matrices
        for number in range(len(matrix))
    ]
    return torch.tensor(begins).to(device, non_blocking=True), not any(b % 16 for b in begins)


def ends_later(ends_E: Tensor) -> Callable[[], list[int]]:
    """The ends on the host, copied while the device goes on; the call waits for them."""
    if not ends_E.is_cuda:
        return ends_E.tolist
    host_E = torch.empty(ends_E.shape, dtype=ends_E.dtype, pin_memory=True)
    host_E.copy_(ends_E, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()

    def wait() -> list[int]:
        copied.synchronize()
        return host_E.tolist()

    return wait


def triton_swiglu(
    x_ND: Tensor, weights_NK: Tensor, choices: SortedChoices, matrices: Sequence[Tensor]
) -> Tensor:
    """sum_k weight_k expert_k(x) for every token.

    Args:
        x_ND: tokens; bfloat16, float16 or float32.
        weights_NK: weights of the outputs, float32.
        choices: of `choices.sort_choices`.
        matrices: gate_up [E_g, 2F, D] and down [E_g, D, F] of every group in turn.
    """
    y_ND: Tensor = _TritonSwiGLU.apply(
        x_ND.contiguous(), weights_NK.float(), choices.tokens_S, choices.places_NK,
        choices.ends_E, *(matrix.contiguous() for matrix in matrices),
    )  # fmt: skip
    return y_ND


def sum_choices(out_SD: Tensor, places_NK: Tensor) -> Tensor:
    """The sum of each token's sorted choices."""
    (N, K), D = places_NK.shape, out_SD.shape[1]
    y_ND = out_SD.new_empty(N, D)
    columns = min(1024, triton.next_power_of_2(D))
    _sum_kernel[(N * triton.cdiv(D, columns),)](out_SD, places_NK, y_ND, D, K=K, COLUMNS=columns)
    return y_ND


class _TritonSwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_ND: Tensor, weights_NK: Tensor, tokens_S: Tensor, places_NK: Tensor,
        ends_E: Tensor, *matrices: Tensor,
    ) -> Tensor:  # fmt: skip
        S, E, D, F = len(tokens_S), len(ends_E), x_ND.shape[1], matrices[1].shape[2]
        tile = tile_of(x_ND.dtype)
        options = tile.options(x_ND.dtype)
        tiles = cover(ends_E, S, tile.rows)
        weights_S = in_order(weights_NK, places_NK, S)
        gate_up_SF = x_ND.new_empty(S, 2 * F)
        hidden_SF, out_SD = x_ND.new_empty(S, F), x_ND.new_empty(S, D)
        begins_E, aligned = addresses(matrices[::2], x_ND.device)
        _up_kernel[(len(tiles.rows_T) * triton.cdiv(F, tile.columns),)](
            x_ND, tokens_S, weights_S, begins_E, gate_up_SF, hidden_SF, tiles.experts_T,
            tiles.rows_T, ends_E, E, D, F, ALIGNED=aligned, **options,
        )  # fmt: skip
        begins_E, aligned = addresses(matrices[1::2], x_ND.device)
        _rows_kernel[(len(tiles.rows_T) * triton.cdiv(D, tile.columns),)](
            hidden_SF, begins_E, out_SD, tiles.experts_T, tiles.rows_T, ends_E, E, F, D, F, 1,
            ALIGNED=aligned, **options,
        )  # fmt: skip
        ctx.ends = ends_later(ends_E)
        ctx.save_for_backward(x_ND, weights_S, tokens_S, places_NK, ends_E, gate_up_SF, *matrices)
        return sum_choices(out_SD, places_NK)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x_ND, weights_S, tokens_S, places_NK, ends_E, gate_up_SF, *matrices = ctx.saved_tensors
        dy_ND = gradients[0].contiguous()
        S, E, D, F = len(tokens_S), len(ends_E), x_ND.shape[1], matrices[1].shape[2]
        tile = tile_of(x_ND.dtype)
        options = tile.options(x_ND.dtype)
        tiles = cover(ends_E, S, tile.rows)
        blocks = triton.cdiv(F, tile.columns)
        d_gate_up_SF, hidden_SF = torch.empty_like(gate_up_SF), x_ND.new_empty(S, F)
        d_weights_SB, dx_SD = weights_S.new_empty(S, blocks), x_ND.new_empty(S, D)
        begins_E, aligned = addresses(matrices[1::2], x_ND.device)
        _hidden_backward_kernel[(len(tiles.rows_T) * blocks,)](
            dy_ND, tokens_S, weights_S, begins_E, gate_up_SF, d_gate_up_SF, hidden_SF,
            d_weights_SB, tiles.experts_T, tiles.rows_T, ends_E, E, D, F, ALIGNED=aligned,
            **options,
        )  # fmt: skip
        d_down_EDF = x_ND.new_empty(E, D, F)
        _weights_kernel[(E * triton.cdiv(D, tile.rows) * blocks,)](
            dy_ND, hidden_SF, tokens_S, ends_E, d_down_EDF, D, F, GATHER_A=True, **options
        )
        d_gate_up_EFD = x_ND.new_empty(E, 2 * F, D)
        across = triton.cdiv(D, tile.columns)
        _weights_kernel[(E * triton.cdiv(2 * F, tile.rows) * across,)](
            d_gate_up_SF, x_ND, tokens_S, ends_E, d_gate_up_EFD, 2 * F, D, GATHER_A=False,
            **options,
        )  # fmt: skip
        begins_E, aligned = addresses(matrices[::2], x_ND.device)
        _rows_kernel[(len(tiles.rows_T) * across,)](
            d_gate_up_SF, begins_E, dx_SD, tiles.experts_T, tiles.rows_T, ends_E, E, 2 * F, D, 1,
            D, ALIGNED=aligned, **options,
        )  # fmt: skip
        sizes = [len(matrix) for matrix in matrices[::2]]
        d_matrices: list[Tensor | None] = []
        first, start, ends = 0, 0, ctx.ends()
        for size in sizes:
            stop = ends[first + size - 1]
            used, experts = stop > start, slice(first, first + size)
            d_matrices += [d_gate_up_EFD[experts], d_down_EDF[experts]] if used else [None, None]
            first, start = first + size, stop
        d_weights_NK = d_weights_SB.sum(1)[places_NK]
        return sum_choices(dx_SD, places_NK), d_weights_NK, None, None, None, *d_matrices
