"""A layout's plan: every class of ranks with what it holds, sends and waits for.

Read next: `layout_search.py`, which compares layouts; `plan.py`, which prints.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from ..model.layout import Layout
from .hardware import Hardware
from .layout_memory import RankMemory, rank_memory
from .layout_parts import Inventory, RankClass, Work, hosts, rank_classes
from .layout_time import StepTime, step_time
from .layout_traffic import Traffic, rank_traffic

Hosting = Callable[[Layout], Sequence[frozenset[str]]]
"""The families that each of a layout's pieces of the line of slots hosts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankPlan:
    """What a class of ranks holds, sends and waits for."""

    ranks: RankClass
    parameters: int
    """Of the model, as one rank holds them; what FSDP2 shards counted whole."""
    memory: RankMemory
    traffic: tuple[Traffic, ...]
    """Of a step."""
    time: StepTime


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutPlan:
    """What a layout asks of its processes."""

    layout: Layout
    work: Work
    classes: tuple[RankPlan, ...]

    @property
    def fullest(self) -> RankPlan:
        """Those with the highest peak of memory."""
        return max(self.classes, key=lambda each: each.memory.peak)

    @property
    def slowest(self) -> RankPlan:
        """Those that the others wait for."""
        return max(self.classes, key=lambda each: each.time.total)

    @property
    def step_seconds(self) -> float:
        """Predicted time of a step."""
        return self.slowest.time.total

    @property
    def tokens_per_second(self) -> float:
        """Of the whole cluster."""
        return self.work.tokens / self.step_seconds


def plan_layout(
    work: Work,
    layout: Layout,
    hosting: Hosting,
    hardware: Hardware,
    *,
    node: int,
    inventory: Inventory | None = None,
    present: Collection[str] | None = None,
    extremes: bool = False,
) -> LayoutPlan:
    """The plan of a resolved, legal layout.

    Args:
        node: processes a node.
        inventory: of the model, where several layouts are planned.
        present: families that have a slot in the step; None for all.
        extremes: plan only the first, second and last stages of the pieces that host most families:
            where memory and time are largest.
    """
    inventory = inventory or Inventory(work.model, work.families)
    stages = inventory.stages(layout, work.sequence_length)
    pieces = hosting(layout)
    hosted_by = hosts(layout, pieces, work.families)
    classes = []
    chosen = rank_classes(layout, pieces, stages)
    if extremes:
        most = max(len(ranks.part.families) for ranks in chosen)
        shown = {0, 1, layout.pipeline - 1}
        chosen = [r for r in chosen if len(r.part.families) == most and r.stage in shown]
    for ranks in chosen:
        memory = rank_memory(work, layout, inventory, ranks, hosted_by)
        traffic = rank_traffic(
            work, layout, inventory, ranks, hosted_by, node=node, present=present
        )
        time = step_time(work, layout, stages, traffic, memory.parameters, hardware)
        parameters = int(inventory.held(ranks.part).elements.sum())
        classes.append(
            RankPlan(
                ranks=ranks, parameters=parameters, memory=memory, traffic=tuple(traffic), time=time
            )
        )
    return LayoutPlan(layout=layout, work=work, classes=tuple(classes))


def everywhere(work: Work) -> Hosting:
    """Every piece hosts every family."""
    return lambda layout: [frozenset(work.families)] * layout.family
