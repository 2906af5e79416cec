"""A run's whole configuration. Parts stand beside what they configure; this joins them.

Read next: `compose.py` (how YAML becomes this), `loop.py` (what it does).
"""

from dataclasses import dataclass, field
from typing import Literal

from ..data.config import DataConfig
from ..data.errors import check_minimums
from ..model.config import ModelConfig
from ..model.layout import Layout
from .engines.deepspeed.config import ZeroConfig
from .engines.megatron.config import MegatronConfig
from .errors import UserError
from .optimizer import OptimConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """What identifies a run."""

    name: str
    """Name of the run; its folder is root/name."""
    root: str = "runs"
    """Folder of run folders."""
    steps: int
    """Optimiser steps in all."""
    seed: int = 0
    """Seed of the initial weights and of samples; the data's order has data.seed."""

    def __post_init__(self) -> None:
        check_minimums(self, "run", steps=1)
        if self.name in ("", ".", "..") or "/" in self.name:
            raise UserError(f"run.name={self.name!r} must be a plain folder name")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """What runs a step, and how."""

    name: Literal["torch", "deepspeed", "megatron"] = "torch"
    """The engine: PyTorch's own parallelism, DeepSpeed's ZeRO, or Megatron-core's."""
    layout: Layout = field(default_factory=Layout)
    """Sizes by which the model and its data are shared out over processes (docs/LAYOUTS.md)."""
    shard: Literal["none", "full"] = "none"
    """torch: whether FSDP2 shards the trunk's weights, gradients and optimiser state over the
    processes that read different tokens; experts stay whole where they are hosted."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Matrix products; `auto` takes bf16 where the hardware multiplies it natively."""
    zero: ZeroConfig = field(default_factory=ZeroConfig)
    """deepspeed: what ZeRO cuts, and where it keeps it."""
    optimizer: Literal["distributed", "zero"] = "distributed"
    """megatron: Megatron's distributed optimiser, or DeepSpeed's ZeRO 1 under its layers."""
    megatron: MegatronConfig = field(default_factory=MegatronConfig)
    """megatron: Megatron-core's own switches."""
    micro_slots: int = 1
    """Slots that a process runs together; the rest of its share is accumulated."""
    threads: int = 0
    """CPU threads a process; 0 leaves PyTorch's default."""
    compile: bool = False
    """Let torch.compile fuse the dense parts (attention, norms, the trunk's feed-forward) in
    training; routers and experts stay as they are. The first steps take longer."""
    recompute: int = 0
    """Activation checkpointing: each n-th layer, from the first, keeps its input alone and is
    computed again in the backward pass; 1 is every layer, 0 none."""
    timeout_minutes: float = 10.0
    """How long a process waits for the others in a collective."""
    peak_tflops: float = 0.0
    """Peak of one device for model FLOP utilisation; 0 looks it up, or measures a CPU's."""

    def __post_init__(self) -> None:
        check_minimums(
            self, "engine", micro_slots=1, threads=0, recompute=0, timeout_minutes=0.01,
            peak_tflops=0,
        )  # fmt: skip
        for needs, settings in (
            ("torch", {"shard": self.shard != "none"}),
            ("deepspeed", {"zero": self.zero != ZeroConfig()}),
            ("megatron", {"megatron": self.megatron != MegatronConfig(),
                          "optimizer": self.optimizer != "distributed"}),
        ):  # fmt: skip
            for setting, given in settings.items():
                if given and self.name != needs:
                    raise UserError(
                        f"engine.{setting} has no effect with engine.name={self.name}: set "
                        f"engine.name={needs}, or leave it out"
                    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointConfig:
    """When a run saves, what it keeps, and whether it resumes."""

    every: int = 500
    """Steps between checkpoints; one is always saved at the end."""
    keep: int = 2
    """How many of the newest to keep."""
    keep_every: int = 0
    """Steps whose multiples are kept for ever; 0 keeps none beyond the newest."""
    resume: str = "auto"
    """`auto` continues the newest checkpoint if there is one, `never` begins anew, or a path."""

    def __post_init__(self) -> None:
        check_minimums(self, "checkpoint", every=1, keep=1, keep_every=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggingConfig:
    """What a run tells while it trains; metrics.jsonl is always written."""

    every: int = 1
    """Steps between metric rows and console lines."""
    samples_every: int = 0
    """Steps between samples of every family; 0 writes none."""
    sample_tokens: int = 48
    """Tokens a sample."""
    tensorboard: bool = False
    """Also write TensorBoard events into the run folder (extra `tensorboard`)."""
    wandb: Literal["off", "online", "offline"] = "off"
    """Also log to Weights & Biases (extra `wandb`)."""
    routing_every: int = 100
    """Steps between tables of token routers and gates; 0 writes them at the end only."""
    parallel_sentences: str | None = None
    """JSONL (or .gz, .zst) of lang, id, text: sentences that routing is compared on."""
    parallel_limit: int = 16
    """Sentences of each language, the same in all."""
    pivot: str = "eng_Latn"
    """The language whose routing the others' is compared with."""

    def __post_init__(self) -> None:
        check_minimums(
            self, "logging", every=1, samples_every=0, sample_tokens=1, routing_every=0,
            parallel_limit=1,
        )  # fmt: skip
        if self.parallel_sentences is None:
            for name, value in (("pivot", "eng_Latn"), ("parallel_limit", 16)):
                if getattr(self, name) != value:
                    raise UserError(
                        f"logging.{name}={getattr(self, name)} has no effect without "
                        "logging.parallel_sentences: name a file of parallel sentences too"
                    )


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationConfig:
    """What is measured on held-out documents."""

    every: int = 0
    """Steps between evaluations while training; 0 evaluates at the end only."""
    rows: int = 16
    """Sequences evaluated together."""
    tokens_per_language: int = 20_000
    """Held-out tokens of a language used while training; the verb `evaluate` uses all."""
    facts: str | None = None
    """A facts.jsonl of multiple-choice questions, for the verb `evaluate`."""
    facts_per_language: int = 100
    """Questions asked of each language, stated and held out apart; 0 asks all."""

    def __post_init__(self) -> None:
        check_minimums(
            self, "evaluation", every=0, rows=1, tokens_per_language=1, facts_per_language=0
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DebugConfig:
    """Switches for finding out what is wrong."""

    overfit: bool = False
    """Train on the first step's batch again and again."""
    anomaly: bool = False
    """Let autograd name the operation that first produced a NaN (slow)."""
    profile: int = 0
    """Steps to trace into the run folder's profile/, after three of warm-up; the run goes on."""

    def __post_init__(self) -> None:
        check_minimums(self, "debug", profile=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterConfig:
    """The machines a plan is made for; the launcher decides what a run really gets."""

    nodes: int = 1
    """Nodes."""
    processes_per_node: int = 1
    """Processes (devices) a node."""
    memory_gib: float = 0.0
    """Memory of one device, for the plan's refusal; 0 is what `hardware` has."""
    hardware: str = "cpu"
    """What a device can do and hold, by its name in configs/hardware.yaml."""

    def __post_init__(self) -> None:
        check_minimums(self, "cluster", nodes=1, processes_per_node=1, memory_gib=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """Everything about a run."""

    run: RunSettings
    model: ModelConfig
    data: DataConfig
    optim: OptimConfig
    engine: EngineConfig = field(default_factory=EngineConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    debug: DebugConfig = field(default_factory=DebugConfig)
