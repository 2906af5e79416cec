"""What routers did in a step, over all processes: it moves their balance and is told as metrics.

Losses pull on routers through their gradients; the rest (selection bias, thresholds, the loads and
budgets that the losses compare with) moves once a step by counts of the whole global batch, so that
it does not depend on how many processes counted. Read next: `../model/balance.py`.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ..model.balance import BINS, move_bias, move_quantile, relative_load
from ..model.decoder import Decoder, DecoderExtras, parameter_family
from ..model.routers import TokenRouter
from .engines.processes import Processes

SHARED = ""
"""The owner of the experts that belong to no family."""


class StepRouting:
    """Counts of one step, and what follows from them."""

    def __init__(
        self,
        decoder: Decoder,
        processes: Processes,
        total: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """
        Args:
            total: sums a tensor, in place, over the processes that hold the same layers; None over
                all.
        """
        self.processes, self.families = processes, decoder.families
        self.total = processes.sum if total is None else total
        self.blocks = {
            number: layer.feed_forward
            for number, layer in decoder.layers.items()
            if isinstance(layer.feed_forward.router, TokenRouter)
            or layer.feed_forward.gate is not None
        }
        self._begin()

    def _begin(self) -> None:
        """Zeros for the next step; the last family is that of rows without a tag."""
        F, device = len(self.families) + 1, self.processes.device
        self.tokens_F = torch.zeros(F, dtype=torch.int64, device=device)
        self.choices_FE: dict[int, Tensor] = {}
        self.gates_F: dict[int, Tensor] = {}
        self.histograms_EQ: dict[int, Tensor] = {}
        self.not_finite: dict[int, Tensor] = {}
        for number, block in self.blocks.items():
            if isinstance(block.router, TokenRouter):
                E = len(block.router.groups_E)
                self.choices_FE[number] = torch.zeros(F, E, dtype=torch.int64, device=device)
                self.not_finite[number] = torch.zeros((), dtype=torch.int64, device=device)
                if block.router.balance_rule == "quantile":
                    self.histograms_EQ[number] = torch.zeros(
                        E, BINS, dtype=torch.int64, device=device
                    )
            if block.gate is not None:
                self.gates_F[number] = torch.zeros(F, dtype=torch.float64, device=device)

    def add(self, languages_B: Tensor, extras: DecoderExtras, positions: int) -> None:
        """Adds a micro-batch of so many positions a row."""
        if not self.blocks or extras.families_B is None:
            return
        rows_B = extras.families_B % len(self.tokens_F)  # -1 is the last
        self.tokens_F += positions * torch.bincount(rows_B, minlength=len(self.tokens_F))
        for number, left in extras.layers.items():
            if left.gate_B is not None:
                self.gates_F[number].index_add_(0, rows_B, left.gate_B.double())
            if left.statistics is None:
                continue
            self.choices_FE[number].index_add_(0, rows_B, left.statistics.experts_BE)
            self.not_finite[number] += left.statistics.not_finite
            if left.statistics.quantile_EQ is not None:
                self.histograms_EQ[number] += left.statistics.quantile_EQ

    def gather(self, step: int) -> None:
        """Sums over all processes; call it once a step, before gradients are reduced.

        Raises:
            FloatingPointError: a router's logits were NaN or infinite.
        """
        if not self.blocks:
            return
        counts = [self.tokens_F, *self.choices_FE.values(), *self.histograms_EQ.values()]
        self._sum(counts + list(self.not_finite.values()))
        self._sum(list(self.gates_F.values()))
        broken = torch.stack([*self.not_finite.values()]).tolist() if self.not_finite else []
        for number, count in zip(self.not_finite, broken, strict=True):
            if count:
                raise FloatingPointError(
                    f"the router of layer {number} had NaN or infinite logits for {count} tokens "
                    f"at step {step + 1}: resume the last checkpoint with a lower "
                    "optim.learning_rate, or begin anew with a larger model.routing.z_loss"
                )

    def _sum(self, tensors: list[Tensor]) -> None:
        """Sums tensors of one dtype over all processes, together."""
        if not tensors:
            return
        flat = self.total(torch.cat([tensor.flatten() for tensor in tensors]))
        for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def touched(self, families: tuple[str, ...]) -> Callable[[str], bool]:
        """Which parameters a step may move: the trunk, and experts that had tokens.

        A group's router rows move with its experts, and where a loss pulls on them without a
        choice; otherwise momentum and decay would move them without a gradient.

        Args:
            families: those with a slot somewhere in the global batch.
        Returns:
            canonical name -> whether some process has a gradient for it.
        """
        used = dict(zip(self.choices_FE, self._used_groups(), strict=True))

        def moves(name: str) -> bool:
            shared = ".shared_experts." in name or ".router.shared." in name
            owner = SHARED if shared else parameter_family(name)
            if owner is None or name.startswith("family_head."):
                return True
            number = int(name.split(".")[1])
            router = self.blocks[number].router if number in self.blocks else None
            if isinstance(router, TokenRouter) and ".feed_forward.router." in name:
                wanted = router.config.sequence_loss > 0 and owner in (SHARED, *families)
                if wanted or router.rows_always_learn:
                    return True
            return owner in used.get(number, families)

        return moves

    def _used_groups(self) -> list[set[str]]:
        """The owners of the experts that tokens chose, of each layer in `choices_FE`."""
        sums: list[Tensor] = []
        for number, choices_FE in self.choices_FE.items():
            router = self.blocks[number].router
            assert isinstance(router, TokenRouter)
            sums += [part.sum() for part in choices_FE.sum(0).split(router.group_sizes)]
        chosen = iter(torch.stack(sums).tolist() if sums else [])
        owners = (*self.families, SHARED)
        return [{name for name in owners if next(chosen)} for _ in self.choices_FE]

    @torch.no_grad()
    def move(self) -> None:
        """Moves the balance by what was gathered, and begins the next step."""
        families_F = torch.arange(len(self.tokens_F), device=self.processes.device)
        families_F[-1] = -1
        for number, block in self.blocks.items():
            router, routing = block.router, block.routing
            if isinstance(router, TokenRouter):
                counts_E = self.choices_FE[number].sum(0)
                wanted_F = self.tokens_F[:, None] * routing.top_k
                targets_E = (router.targets_BE(families_F) * wanted_F).sum(0)
                balance_E = router.balance_E
                if router.balance_rule == "bias":
                    move_bias(balance_E, counts_E, targets_E, routing.bias_rate)
                elif router.balance_rule == "quantile":
                    move_quantile(
                        balance_E, self.histograms_EQ[number], targets_E, routing.quantile_decay
                    )
                router.set_state(balance_E, relative_load(counts_E, targets_E))
                router.limit_biases()
            if number in self.gates_F:
                mean_F = self.gates_F[number] / self.tokens_F.clamp_min(1)
                budgets = [
                    routing.family_budgets.get(name, routing.gate_budget) for name in self.families
                ]
                budget_F = torch.tensor(budgets, dtype=mean_F.dtype, device=mean_F.device)
                seen_F = self.tokens_F[:-1] > 0
                pull_F = torch.sign(mean_F[:-1] - budget_F)
                block.set_budget_pull(torch.where(seen_F, pull_F.float(), block.budget_pull_F))
        self._begin()
