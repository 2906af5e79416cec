"""From a config to a run's parts: run folder, data, model, optimisers, and where to resume.

Read next: `loop.py`, which trains what is put together here.
"""

import dataclasses
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..data.hosting import hosted_families
from ..data.ledger import Ledger
from ..data.manifest import Manifest
from ..data.order import fingerprint
from ..data.prepare import load_prepared
from ..data.storage import Storage, open_storage
from ..data.stream import Stream, build_order
from ..data.tokenizer import Tokenizer
from ..model.decoder import Decoder, canonical_shapes
from ..model.routers import load_domain_rows
from .checkpoint import (
    CheckpointReader,
    DamagedCheckpoint,
    latest_checkpoint,
    load_rng,
    read_state,
)
from .compose import to_yaml
from .config import RunConfig
from .console import say
from .engines.engine import Engine
from .engines.processes import Processes
from .errors import UserError
from .evaluation import Scoring
from .plan import make_plan, write_plan
from .run_folder import open_folder, run_folder, run_lock
from .run_mixture import decided_ledger, run_ledger, write_ledger


@dataclass(slots=True)
class Trainer:
    """A run's parts, put together by `start`."""

    config: RunConfig
    folder: Path
    engine: Engine
    manifest: Manifest
    tokenizer: Tokenizer
    ledger: Ledger
    storage: Storage
    stream: Stream
    token_bytes: Tensor
    scoring: Scoring
    order_fingerprint: str
    step: int = 0
    tokens_seen: int = 0
    seconds_before: float = 0.0
    origin: str = "auto"
    lock: ExitStack = field(default_factory=ExitStack)
    """The run folder's, on the leader; held while the run trains."""

    @property
    def processes(self) -> Processes:
        """Those that train the run."""
        return self.engine.processes

    @property
    def decoder(self) -> Decoder:
        """This process's part of the model."""
        assert self.engine.decoder is not None
        return self.engine.decoder


def start(config: RunConfig, engine: Engine) -> Trainer:
    """Opens run folder and data, builds the model, and resumes where there is a checkpoint."""
    processes, place = engine.processes, engine.place
    processes.same_everywhere("config", to_yaml(config))
    storage = open_storage(config.data.prepared, config.data.storage)
    manifest, tokenizer = load_prepared(storage)
    planned = dataclasses.replace(
        config,
        cluster=dataclasses.replace(config.cluster, nodes=1, processes_per_node=processes.world),
    )
    folder = run_folder(config)
    plan = make_plan(planned, manifest, decided_ledger(folder))
    check_alone(config, engine)
    refusal, lock = "", ExitStack()
    if processes.leader:
        # All processes end with the one line, rather than one with it and the others in a barrier.
        try:
            lock.enter_context(run_lock(folder))
            open_folder(config)
            write_plan(plan, config, folder / "plan.txt")
        except UserError as mistake:
            refusal = str(mistake)
    refusal = processes.leader_says(refusal)
    if refusal:
        raise UserError(refusal)
    checkpoint = find_checkpoint(config, folder)
    state = read_state(checkpoint) if checkpoint else None
    ledger = run_ledger(config, manifest, state)
    processes.same_everywhere(
        "mixture, prepared folder or checkpoint", f"{ledger.hash} {checkpoint}"
    )
    check_geometry(config, ledger)
    if processes.leader:
        write_ledger(folder, ledger)
    stream = Stream(
        storage, manifest, ledger,
        rank=place.data, world=engine.layout.readers, micro_slots=config.engine.micro_slots,
    )  # fmt: skip
    first_ids = fingerprint(stream.order)
    if state:
        # Of the checkpoint's own ledger: an edit since then may lie within the first ids.
        if state.order_fingerprint != fingerprint(build_order(state.ledger, manifest)):
            raise UserError(
                f"{checkpoint} was trained in another order of the data (the first 1,000 ids "
                "differ): resume with the prepared folder and the Xylem version that began it"
            )
        stream.order.restore(state.stream)
    first, last = state.step if state else 0, config.run.steps
    if config.debug.overfit:
        first, last = 0, 1  # the one step that is read over and over
    hosted = hosted_families(
        stream.order, manifest.families, first, last,
        family=engine.layout.family, data=engine.layout.data,
    )  # fmt: skip
    engine.build(config, manifest.families, hosted)
    # Modules drew their first values, as many as this process holds; nothing else draws.
    torch.manual_seed(config.run.seed)
    if checkpoint:
        reader = CheckpointReader(checkpoint)
        everywhere(processes, lambda: reader.verify(rank=processes.rank, world=processes.world))
        reader.check(canonical_shapes(config.model, manifest.families))
        engine.load(reader)
        load_rng(checkpoint)
    elif config.model.routing.domain_rows and engine.decoder is not None:
        load_domain_rows(engine.decoder, Path(config.model.routing.domain_rows))
    layout = engine.layout
    scoring = Scoring(
        engine.score, processes, place.data, hosted, together=engine.together,
        counts=not (place.tensor or place.context) and place.pipeline == layout.pipeline - 1,
    )  # fmt: skip
    trainer = Trainer(
        config, folder, engine, manifest, tokenizer, ledger, storage, stream,
        torch.from_numpy(tokenizer.token_bytes).long().to(processes.device), scoring, first_ids,
        origin=config.checkpoint.resume, lock=lock,
    )  # fmt: skip
    if state:
        trainer.step, trainer.tokens_seen = state.step, state.tokens_seen
        trainer.seconds_before = state.seconds
        if config.checkpoint.resume == "auto":
            trainer.origin = state.origin
    if processes.leader:
        begun = f"resumed at step {trainer.step} from {checkpoint}" if checkpoint else "new run"
        if trainer.step >= config.run.steps:
            begun += f", run.steps={config.run.steps} is reached: nothing to train"
        say(
            f"{folder}: {begun}; {len(manifest.languages)} languages in "
            f"{len(manifest.families)} families; {processes.world} process(es) on "
            f"{processes.device.type}, {processes.precision}; {config.engine.name}: {layout}"
        )
    return trainer


def everywhere(processes: Processes, check: Callable[[], None]) -> None:
    """Runs a check that each process does for a part; one's failure is every process's.

    Raises:
        DamagedCheckpoint: some process found a file damaged.
    """
    found = ""
    try:
        check()
    except DamagedCheckpoint as damage:
        found = str(damage)
    for told in processes.all_say(found):
        if told:
            raise DamagedCheckpoint(told)


def check_alone(config: RunConfig, engine: Engine) -> None:
    """Whether what one process does alone with the model can be done where a model is shared out.

    Raises:
        UserError: it cannot.
    """
    layout, shared = engine.layout, config.engine.shard == "full" or config.engine.name != "torch"
    if layout.data == layout.world and layout.expert == 1 and not shared:
        return
    for setting, wanted, off in (
        ("logging.samples_every", config.logging.samples_every, "0"),
        ("logging.parallel_sentences", config.logging.parallel_sentences, "null"),
    ):
        if wanted:
            raise UserError(
                f"{setting}={wanted} runs the whole model on one process, and engine="
                f"{config.engine.name} ({layout}) shares it out: set {setting}={off}; `xylem "
                "evaluate` and `xylem export` read its checkpoints"
            )


def find_checkpoint(config: RunConfig, folder: Path) -> Path | None:
    """The checkpoint to resume from, by `checkpoint.resume`.

    A run begun with `never` or a path goes on from its own checkpoints when the same command starts
    it again, as a scheduler does.

    Raises:
        UserError: the path is none, or `never` would bury another run.
    """
    wanted = config.checkpoint.resume
    try:
        own = latest_checkpoint(folder)
    except DamagedCheckpoint:
        if wanted in ("auto", "never"):
            raise
        own = None  # a path is the way out of a damaged `latest`
    if own is not None and (wanted == "auto" or read_state(own).origin == wanted):
        return own
    if wanted == "auto":
        return None
    if wanted == "never":
        if own is not None:
            raise UserError(
                f"checkpoint.resume=never, but {folder} holds checkpoints: give the new run "
                "another run.name, or remove the folder"
            )
        return None
    if not (Path(wanted) / "state.json").exists():
        raise UserError(
            f"checkpoint.resume={wanted} is no checkpoint: it has no state.json; a checkpoint is "
            "a folder runs/NAME/checkpoints/step-N"
        )
    return Path(wanted)


def check_geometry(config: RunConfig, ledger: Ledger) -> None:
    """Whether the config cuts batches as the checkpoint's ledger does.

    Raises:
        UserError: it does not, so that plan and run would differ.
    """
    data, entry = config.data, ledger.entries[0]
    for name, asked, decided in (
        ("sequence_length", data.sequence_length, ledger.sequence_length),
        ("slot_sequences", data.slot_sequences, ledger.slot_sequences),
        ("slots_per_step", data.slots_per_step, entry.slots),
        ("seed", data.seed, ledger.seed),
    ):
        if asked != decided:
            raise UserError(
                f"data.{name}={asked}, but the checkpoint's mixture was decided with {decided}: "
                f"set data.{name}={decided}"
            )
