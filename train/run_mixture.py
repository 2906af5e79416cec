"""What was decided about a run's mixture, and how is it changed while the run lives?

`runs/NAME/ledger.json` holds the run's ledger. `xylem mixture RUN` shows it; with settings, a
manifest that was extended, or a shard to leave out, it appends an entry for a step that has not run
yet. The next start of the run reads it; every checkpoint holds what it was made under.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.table import Table

from ..data.errors import DataError
from ..data.ledger import SHARE_TOTAL, Ledger, LedgerEntry, ledger_from_json
from ..data.manifest import Manifest, load_parent
from ..data.mixture import Horizon, MixtureConfig, decide
from ..data.order import Order
from ..data.shards import write_atomically
from ..data.storage import Storage, open_storage
from ..data.stream import build_order, first_ledger
from ..data.token_line import TokenLine
from .build import build
from .checkpoint import RunState, latest_checkpoint, read_state
from .compose import named_share
from .config import RunConfig
from .console import say
from .errors import UserError
from .run_folder import RunIsTraining, read_config, run_folder, run_lock

LEDGER_NAME = "ledger.json"
_PREFIX = "data.mixture."


def read_ledger(folder: Path) -> Ledger | None:
    """The ledger of a run folder; None before the run's first start.

    Raises:
        DataError: the file is damaged, or of another version.
    """
    path = folder / LEDGER_NAME
    if not path.exists():
        return None
    try:
        return ledger_from_json(path.read_text(encoding="utf-8"))
    except (DataError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: {error}") from None


def show_ledger(folder: Path) -> Ledger:
    """The ledger of a run folder.

    Raises:
        UserError: the folder is none, or the run was never started.
    """
    read_config(folder)
    ledger = read_ledger(folder)
    if ledger is None:
        raise UserError(
            f"{folder} has not been started, so it has no ledger: set data.mixture in its config "
            "instead"
        )
    return ledger


def write_ledger(folder: Path, ledger: Ledger) -> None:
    """Writes a run's ledger, whole or not at all."""
    write_atomically(folder / LEDGER_NAME, (ledger.to_json() + "\n").encode())


def run_ledger(config: RunConfig, manifest: Manifest, state: RunState | None) -> Ledger:
    """The ledger that a run goes on with.

    Raises:
        UserError: the run's file decides steps that its checkpoint was made under differently.
    """
    folder = run_folder(config)
    written = decided_ledger(folder)
    warn_of_caps(written, config.run.steps)
    if state is None:
        return written or first_ledger(
            config.data,
            manifest,
            config.run.steps,
            lambda held: say(str(held)),
        )
    if written is None:
        return state.ledger
    if written.before(state.step) != state.ledger.before(state.step):
        raise UserError(
            f"{folder / LEDGER_NAME} decides steps before {state.step} in another way than the "
            f"checkpoint of step {state.step} was trained: the past cannot be edited; remove the "
            "file to go on with the checkpoint's own ledger"
        )
    return written


@contextmanager
def edit_lock(folder: Path) -> Iterator[None]:
    """Holds a run folder for an edit; raises UserError while the run is training."""
    try:
        with run_lock(folder):
            yield
    except RunIsTraining:
        raise UserError(
            f"{folder} is training, and its processes hold the ledger: leave it with `touch "
            f"{folder}/triggers/exit`, edit, and start it again"
        ) from None


def decided_ledger(folder: Path) -> Ledger | None:
    """A run's ledger where it counts: the run was trained, or edited; else it is decided anew."""
    written = read_ledger(folder)
    if written is None:
        return None
    trained = any((folder / "checkpoints").glob("step-*"))
    return written if trained or any(entry.edited for entry in written.entries) else None


def warn_of_caps(ledger: Ledger | None, steps: int) -> None:
    """Says so where the run goes on beyond the step by which its caps on epochs hold."""
    entry = ledger.entries[-1] if ledger else None
    if entry and entry.until_step is not None and steps > entry.until_step:
        say(
            f"data.mixture.max_epochs was decided for {entry.until_step:,} steps, and "
            f"run.steps={steps}: languages may be read more often; decide anew with `xylem mixture "
            f"RUN {_PREFIX}max_epochs=N`"
        )


def edit_mixture(
    folder: Path,
    settings: Sequence[str],
    *,
    from_step: int | None,
    quarantine: Sequence[str] = (),
    release: Sequence[str] = (),
    new_sources: bool = False,
    drop_later: bool = False,
    reason: str = "",
) -> Ledger:
    """Appends a decision to a run's ledger and writes it.

    Args:
        folder: the run folder.
        settings: `data.mixture.KEY=VALUE`, on top of those in force at that step; and
            `run.steps=N` where the run will be longer than its config says.
        from_step: first step of the new mixture; None takes the checkpoint's.
        quarantine, release: shards, by their path in the prepared folder.
        new_sources: decide over the manifest as it is now, not as it was at the last decision.
        drop_later: forget entries that were decided for later steps.
        reason: why, for people.
    Raises:
        UserError, DataError: the run is training, the step has run, a name is unknown, ….
    """
    config = read_config(folder)
    ends = [s.partition("=")[2] for s in settings if s.startswith("run.steps=")]
    settings = [s for s in settings if not s.startswith("run.steps=")]
    if ends and not ends[-1].isdigit():
        raise UserError(f"run.steps={ends[-1]} must be a whole number")
    steps = int(ends[-1]) if ends else config.run.steps
    with edit_lock(folder):
        ledger = show_ledger(folder)
        checkpoint = latest_checkpoint(folder)
        state = read_state(checkpoint) if checkpoint else None
        now = state.step if state else 0
        step = now if from_step is None else from_step
        if step >= steps:
            raise UserError(
                f"--from={step} is not before the run's end, run.steps={steps}: give run.steps=N "
                "here too if the run is to be longer"
            )
        if drop_later and step >= now:
            kept = tuple(e for e in ledger.entries if e.from_step < step or not e.from_step)
            ledger = dataclasses.replace(ledger, entries=kept)
        prepared = open_storage(config.data.prepared, config.data.storage)
        manifest = Manifest.load(prepared)
        order = build_order(ledger, manifest)
        decided_over = ledger.at(step).manifest_hash
        if new_sources and decided_over == manifest.hash:
            raise UserError(
                f"--new-sources: {config.data.prepared} holds nothing that the mixture of step "
                f"{step} does not know; add text with `xylem prepare --extend NAME`"
            )
        if not new_sources and decided_over != manifest.hash:
            manifest = load_parent(prepared, decided_over)
        if state:
            order.restore(state.stream)
        entry = next_entry(
            config,
            ledger,
            manifest,
            order,
            prepared,
            settings,
            steps,
            step,
            quarantine,
            release,
            reason,
        )
        if step == 0 and len(ledger.entries) == 1 and not now:
            edited = dataclasses.replace(ledger, entries=(entry,))
        else:
            edited = ledger.edit(entry, current_step=now)
        build_order(edited, Manifest.load(prepared))
        write_ledger(folder, edited)
    return edited


def next_entry(
    config: RunConfig,
    ledger: Ledger,
    manifest: Manifest,
    order: Order,
    storage: Storage,
    settings: Sequence[str],
    steps: int,
    step: int,
    quarantine: Sequence[str],
    release: Sequence[str],
    reason: str,
) -> LedgerEntry:
    """The entry of an edit."""
    last = ledger.at(step)
    mixture = build_mixture(last.settings, settings)
    shut = {source: dict(shards) for source, shards in last.quarantine.items()}
    for shard in release:
        owners = [source for source, shards in shut.items() if shard in shards]
        if not owners:
            raise UserError(f"--release={shard}: it is not in quarantine at step {step}")
        for source in owners:
            del shut[source][shard]
    for shard in quarantine:
        source, span = find_shard(manifest, storage, shard)
        shut.setdefault(source, {})[shard] = span
    entry, held = decide(
        mixture,
        manifest,
        Horizon(
            from_step=step,
            until_step=steps,
            last_step=steps,
            read=order.cursors(step) if mixture.max_epochs is not None else {},
        ),
        slots=last.slots,
        slot_sequences=ledger.slot_sequences,
        sequence_length=ledger.sequence_length,
        quarantine={source: shards for source, shards in shut.items() if shards},
        reason=reason,
        edited=True,
    )
    for language in held:
        say(str(language))
    return entry


def build_mixture(base: dict[str, object], settings: Sequence[str]) -> MixtureConfig:
    """The settings of a mixture with some of them changed.

    Raises:
        UserError: one is not `data.mixture.KEY=VALUE`, or is unknown or wrong.
    """
    for setting in settings:
        if not setting.startswith(_PREFIX) or "=" not in setting:
            raise UserError(
                f"{setting!r}: the mixture of a run is edited with {_PREFIX}KEY=VALUE only, for "
                f"example {_PREFIX}max_epochs=4"
            )
    shares = [share for setting in settings if (share := named_share(setting))]
    others = [s.removeprefix(_PREFIX) for s in settings if not named_share(s)]
    try:
        changed = OmegaConf.merge(OmegaConf.create(base), OmegaConf.from_dotlist(others))
        merged = OmegaConf.to_container(changed)
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise UserError(" ".join(str(error).split())) from error
    values: dict[str, Any] = {str(k): v for k, v in merged.items()}  # type: ignore[union-attr]
    for table, name, value in shares:
        values[table] = {**(values.get(table) or {}), name: value}
    mixture: MixtureConfig = build(MixtureConfig, values)
    if mixture.stages:
        raise UserError(
            f"{_PREFIX}stages: an edit is one decision; make one with --from for each stage"
        )
    return mixture


def find_shard(manifest: Manifest, storage: Storage, path: str) -> tuple[str, tuple[int, int]]:
    """The source that holds a shard, and the tokens of its line in it, [first, last + 1).

    Raises:
        UserError: no training source holds it.
    """
    path = path.removeprefix(storage.place.rstrip("/") + "/")
    for name, source in manifest.sources.items():
        folder = source.shards.table.rpartition("/")[0]
        if source.shards.table and path.startswith(folder + "/"):
            line = TokenLine(storage, source.shards)
            for number, shard in enumerate(line.shards):
                if shard.path == path:
                    bounds = line.shard_bounds()
                    return name, (int(bounds[number]), int(bounds[number + 1]))
    raise UserError(
        f"--quarantine={path}: no training source holds a shard of that path; write it as the "
        "error names it, or from the prepared folder on: train/swh_Latn/00003.tar"
    )


def print_ledger(ledger: Ledger, console: Console) -> None:
    """The decisions, one a line, and each source's share of the batch under them."""
    for entry in ledger.entries:
        counts = (
            f"{entry.slots} slots a step over {len(entry.families)} families, "
            f"{sum(len(shares) for shares in entry.languages.values())} languages, "
            f"{sum(len(shares) for shares in entry.sources.values())} sources"
        )
        shut = [shard for shards in entry.quarantine.values() for shard in shards]
        told = [
            counts,
            f"manifest {entry.manifest_hash[:12]}",
            *([f"without {', '.join(shut)}"] if shut else []),
            *([entry.reason] if entry.reason else []),
        ]
        console.print(
            f"from step {entry.from_step:,}: {'; '.join(told)}",
            markup=False, highlight=False, soft_wrap=True,
        )  # fmt: skip
    shares = Table(title="share of the batch by source", title_justify="left")
    shares.add_column("source")
    for entry in ledger.entries:
        shares.add_column(f"from {entry.from_step:,}", justify="right")
    columns = [source_shares(entry) for entry in ledger.entries]
    for name in sorted({name for column in columns for name in column}):
        told = [f"{column[name]:.3%}" if name in column else "" for column in columns]
        shares.add_row(name, *told)
    console.print(shares)


def source_shares(entry: LedgerEntry) -> dict[str, float]:
    """Each source's share of all sequences under an entry."""
    return {
        source: entry.families[family] * share * parts / SHARE_TOTAL**3
        for family, languages in entry.languages.items()
        for code, share in languages.items()
        for source, parts in entry.sources[code].items()
    }
