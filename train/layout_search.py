"""Which layouts suit a cluster? All legal ones, ranked by the step time that is predicted.

`xylem plan --search nodes=64` prints the first of them. Read next: `layout_plan.py`, what each
asks; `docs/SCALING.md`, what the prediction assumes.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from ..data.manifest import Manifest
from ..data.stream import build_order, first_ledger
from ..model.accounting import training_flops_per_token
from ..model.errors import ModelError
from ..model.layout import Layout, check_layout
from .config import RunConfig
from .engines.checks import check_engine
from .errors import UserError
from .hardware import Hardware, hardware_named
from .layout_parts import Inventory, Work
from .layout_plan import Hosting, LayoutPlan, plan_layout
from .plan import hosting_of, planned_work

GIB = 2**30
CLUSTER_KEYS = ("nodes", "processes_per_node", "hardware")
KEPT_FREE = 0.08
"""Of a device's memory: what libraries and fragments take, which a plan does not count."""
LARGEST_MICRO_SLOTS = 8
LARGEST_CONTEXT = 8

Check = Callable[[Work, Layout], None]
"""Raises UserError or ModelError where the engine cannot run a step in a layout."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """What `xylem plan --search` is asked for."""

    nodes: int
    processes_per_node: int
    hardware: Hardware
    name: str
    """Of the hardware."""

    @property
    def world(self) -> int:
        """Processes in all."""
        return self.nodes * self.processes_per_node

    @property
    def usable(self) -> float:
        """Bytes of a device that a plan may fill."""
        return self.hardware.memory_gib * GIB * (1 - KEPT_FREE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposals:
    """What a search found."""

    fitting: tuple[LayoutPlan, ...]
    """Those that fit into memory, the fastest first."""
    smallest: LayoutPlan
    """The one whose fullest rank needs least memory, whether it fits or not."""
    considered: int
    """How many were planned."""


def cluster_words(words: Sequence[str], searching: bool) -> tuple[list[str], list[str]]:
    """The words of a command line that describe a cluster, and its other settings.

    Raises:
        UserError: a cluster is described, and `--search` is not given.
    """
    ours = [word for word in words if word.partition("=")[0] in CLUSTER_KEYS]
    if ours and not searching:
        raise UserError(
            f"{ours[0]} describes a cluster for --search; the plan of one layout takes "
            f"cluster.{ours[0]}"
        )
    return ours, [word for word in words if word not in ours]


def parse_cluster(words: Sequence[str], hardware: str, processes_per_node: int) -> Cluster:
    """`nodes=64 processes_per_node=8 hardware=h100`.

    Args:
        hardware, processes_per_node: what holds where none is named.
    Raises:
        UserError: no such hardware, or no number.
    """
    given = {key: value for key, _, value in (word.partition("=") for word in words)}
    name = given.get("hardware", hardware)
    device = hardware_named(name)
    per_node = device.node if "hardware" in given else processes_per_node
    sizes = {"nodes": "1", "processes_per_node": str(per_node)} | given
    for key in ("nodes", "processes_per_node"):
        if not sizes[key].isdecimal() or int(sizes[key]) < 1:
            raise UserError(f"--search {key}={sizes[key]}: must be a whole number of at least 1")
    return Cluster(
        nodes=int(sizes["nodes"]), processes_per_node=int(sizes["processes_per_node"]),
        hardware=device, name=name,
    )  # fmt: skip


def legal_layouts(work: Work, cluster: Cluster) -> Iterator[Layout]:
    """Every layout of sizes that the model, the data and the cluster allow.

    Tensor parallelism stays within a node; context and pipeline sizes are powers of two.
    """
    world, layers = cluster.world, len(work.model.layers)
    by_family = any(each.expert_width and each.router == "family" for each in work.model.layers)
    for tensor in _powers(cluster.processes_per_node):
        for context in _powers(LARGEST_CONTEXT):
            for pipeline in _powers(layers):
                others = tensor * context * pipeline
                if world % others:
                    continue
                readers = world // others
                if work.slots % readers:
                    continue
                families = _divisors(readers, len(work.families)) if by_family else [1]
                routed = work.model.routes_tokens
                experts = _divisors(readers, readers) if routed else [1]
                for virtual in (1, 2) if pipeline > 1 else (1,):
                    for family in families:
                        for expert in experts:
                            layout = Layout(
                                data=readers // family, family=family, tensor=tensor,
                                context=context, pipeline=pipeline, virtual=virtual, expert=expert,
                            )  # fmt: skip
                            if _is_legal(work, layout):
                                yield layout


def search(work: Work, cluster: Cluster, hosting: Hosting, check: Check | None = None) -> Proposals:
    """All legal layouts with their micro-batches, sharding and recomputation.

    Args:
        check: what the engine refuses is not proposed; None leaves none out.
    Raises:
        UserError: there is none for so many processes, or the engine refuses every one.
    """
    inventory = Inventory(work.model, work.families)
    fitting: list[LayoutPlan] = []
    smallest: LayoutPlan | None = None
    considered = 0
    refusal: UserError | ModelError | None = None
    for layout in legal_layouts(work, cluster):
        for variant in _variants(work, layout):
            try:
                if check is not None:
                    check(variant, layout)
            except (UserError, ModelError) as refused:
                refusal = refusal or refused
                continue
            plan = plan_layout(
                variant, layout, hosting, cluster.hardware, node=cluster.processes_per_node,
                inventory=inventory, extremes=True,
            )  # fmt: skip
            considered += 1
            if plan.fullest.memory.peak <= cluster.usable:
                fitting.append(plan)
            if smallest is None or plan.fullest.memory.peak < smallest.fullest.memory.peak:
                smallest = plan
    if smallest is None and refusal is not None:
        raise refusal
    if smallest is None:
        raise UserError(
            f"no layout of {cluster.world} processes is legal for data.slots_per_step="
            f"{work.slots}: the processes that read different slots must divide it; change the "
            "number of nodes or data.slots_per_step"
        )
    return Proposals(
        fitting=tuple(sorted(fitting, key=lambda plan: (plan.step_seconds, _cost(plan)))),
        smallest=smallest,
        considered=considered,
    )


def check_fits(found: Proposals, cluster: Cluster) -> None:
    """Whether anything fits.

    Raises:
        UserError: nothing does; names the smallest, and what it needs.
    """
    if found.fitting:
        return
    smallest = found.smallest
    memory = smallest.fullest.memory
    worst = max(memory.parts, key=lambda name: memory.parts[name])
    raise UserError(
        f"none of {found.considered} layouts fits {cluster.name}, which has "
        f"{cluster.hardware.memory_gib:g} GiB ({cluster.usable / GIB:.1f} of them usable): the "
        f"smallest, {described(smallest)}, needs {memory.peak / GIB:.1f} GiB on its fullest rank, "
        f"{memory.parts[worst] / GIB:.1f} of them for {worst}; take more nodes, hardware with more "
        "memory, or a smaller model"
    )


def described(plan: LayoutPlan) -> str:
    """A plan's layout and the settings that go with it."""
    work = plan.work
    settings = [str(plan.layout), f"micro_slots={work.micro_slots}"]
    settings += ["shard=full"] if work.shard == "full" else []
    settings += [f"recompute={work.recompute}"] if work.recompute else []
    return ", ".join(settings)


def print_search(
    words: Sequence[str], config: RunConfig, manifest: Manifest, console: Console
) -> None:
    """Searches for the cluster that words describe, and prints what was found.

    Raises:
        UserError, DataError: nothing fits, or the run itself cannot be.
    """
    cluster = parse_cluster(words, config.cluster.hardware, config.cluster.processes_per_node)
    named = dataclasses.replace(config.cluster, hardware=cluster.name)
    config = dataclasses.replace(config, cluster=named)
    ledger = first_ledger(config.data, manifest, config.run.steps)
    hosting = hosting_of(build_order(ledger, manifest), manifest, config.run.steps)
    check = engine_check(config, manifest.families)
    found = search(planned_work(config, manifest), cluster, hosting, check)
    check_fits(found, cluster)
    print_proposals(found, cluster, console)


def engine_check(config: RunConfig, families: Sequence[str]) -> Check:
    """What the config's engine refuses, asked of another layout and its settings."""

    def check(work: Work, layout: Layout) -> None:
        engine = dataclasses.replace(
            config.engine, layout=layout, micro_slots=work.micro_slots,
            shard="full" if work.shard == "full" else "none", recompute=work.recompute,
        )  # fmt: skip
        check_engine(dataclasses.replace(config, engine=engine), layout, families)

    return check


def print_proposals(found: Proposals, cluster: Cluster, console: Console, first: int = 8) -> None:
    """The fastest as a table."""
    nodes = "1 node" if cluster.nodes == 1 else f"{cluster.nodes:,} nodes"
    table = Table(
        title=f"{nodes} of {cluster.processes_per_node} {cluster.name}: "
        f"{len(found.fitting):,} of {found.considered:,} layouts fit, predicted fastest first",
        title_justify="left",
    )
    table.add_column("layout and settings")
    for name in ("step s", "tokens/s", "of peak", "GiB", "GiB across"):
        table.add_column(name, justify="right")
    for plan in found.fitting[:first]:
        across = sum(traffic.across for traffic in plan.slowest.traffic)
        table.add_row(
            described(plan),
            f"{plan.step_seconds:.3g}",
            f"{plan.tokens_per_second:,.0f}",
            f"{model_share(plan, cluster):.0%}",
            f"{plan.fullest.memory.peak / GIB:.1f}",
            f"{across / GIB:.2f}",
        )
    console.print(table)
    best = found.fitting[0]
    where = (
        f"cluster.nodes={cluster.nodes}",
        f"cluster.processes_per_node={cluster.processes_per_node}",
        f"cluster.hardware={cluster.name}",
    )  # fmt: skip
    told = " ".join((*settings_of(best), *where))
    console.print(f"settings of the first, for `plan` too: {told}", soft_wrap=True)
    console.print(
        "GiB: at the peak of the fullest process; across: what a process sends to other nodes a "
        "step; of peak: model FLOPs of what the devices could do"
    )
    console.print(
        "predicted from datasheets, not measured (docs/SCALING.md): compare the first few by runs "
        "of some steps"
    )


def settings_of(plan: LayoutPlan) -> list[str]:
    """The settings that make a run of a plan."""
    layout, work = plan.layout, plan.work
    names = ("family", "tensor", "context", "pipeline", "virtual", "expert")
    sizes = {name: getattr(layout, name) for name in names}
    told = [f"engine.layout.{name}={size}" for name, size in sizes.items() if size > 1]
    told += [f"engine.micro_slots={work.micro_slots}", f"engine.shard={work.shard}"]
    return [*told, f"engine.recompute={work.recompute}"]


def model_share(plan: LayoutPlan, cluster: Cluster) -> float:
    """Model FLOP utilisation: the step's FLOPs, recomputation apart, of what devices could do."""
    work, device = plan.work, cluster.hardware
    flops = training_flops_per_token(work.model, work.families, work.sequence_length) * work.tokens
    tflops = device.bf16_tflops if work.precision == "bf16" else device.fp32_tflops
    return flops / (plan.step_seconds * tflops * 1e12 * cluster.world)


def _variants(work: Work, layout: Layout) -> Iterator[Work]:
    """The same step with other micro-batches, sharding and recomputation."""
    each = work.slots // layout.readers
    for micro_slots in _divisors(each, LARGEST_MICRO_SLOTS):
        if layout.virtual > 1 and (each // micro_slots) % layout.pipeline:
            continue  # the interleaved schedule runs whole rounds of the stages
        for shard in ("none", "full"):
            if shard == "full" and layout.readers * layout.context == 1:
                continue
            for recompute in (0, 1):
                yield dataclasses.replace(
                    work, micro_slots=micro_slots, shard=shard, recompute=recompute
                )


def _is_legal(work: Work, layout: Layout) -> bool:
    try:
        check_layout(work.model, work.families, layout, work.sequence_length)
    except ModelError:
        return False
    return True


def _cost(plan: LayoutPlan) -> int:
    return plan.fullest.memory.peak


def _powers(largest: int) -> list[int]:
    return [1 << n for n in range(largest.bit_length()) if 1 << n <= largest]


def _divisors(number: int, largest: int) -> list[int]:
    return [n for n in range(1, min(number, largest) + 1) if number % n == 0]
