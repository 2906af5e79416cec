"""How is an entry of the ledger decided? Shares by temperature, fixed shares, caps, stages.

The caps are UniMax's (Chung et al. 2023, arXiv 2304.09151): a language is read at most so many
times, and what it leaves is given to the others, here inside families and between them. Read next:
`ledger.py`.
"""

import dataclasses
import difflib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from .errors import DataError, check_minimums
from .ledger import SHARE_TOTAL, Ledger, LedgerEntry, integer_shares
from .manifest import Manifest
from .order import Order
from .packing import sequences_in, shut_positions


@dataclass(frozen=True, slots=True, kw_only=True)
class MixtureConfig:
    """Which share of the batch each family, language and source gets."""

    family_temperature: float = 2.0
    """Families get slots in proportion to tokens^(1/temperature); `.inf` gives equal shares."""
    language_temperature: float = 2.0
    """Languages of a family share its sequences in proportion to tokens^(1/temperature)."""
    max_epochs: float | None = None
    """A language is read at most so often by the run's end (UniMax); the rest goes to others."""
    families: dict[str, float] = field(default_factory=dict)
    """Family -> its share of all slots, 0 to 1; the others share what is left. 0 leaves it out."""
    languages: dict[str, float] = field(default_factory=dict)
    """Language -> its share of its family's sequences, 0 to 1. 0 leaves it out."""
    sources: dict[str, float] = field(default_factory=dict)
    """Source -> its share of its language's sequences, 0 to 1. 0 leaves it out."""
    stages: tuple["StageConfig", ...] = ()
    """Later mixtures, by the step from which they hold."""

    def __post_init__(self) -> None:
        check_shares(self, "data.mixture")
        steps = [stage.from_step for stage in self.stages]
        if steps != sorted(set(steps)):
            raise DataError(
                f"data.mixture.stages begin at steps {steps}: list them in rising order, each once"
            )

    def at_stage(self, number: int) -> "MixtureConfig":
        """The settings that hold from the number-th stage on; 0 is the beginning."""
        settings = self
        for stage in self.stages[:number]:
            changes = {
                f.name: getattr(stage, f.name)
                for f in dataclasses.fields(stage)
                if f.name != "from_step" and getattr(stage, f.name) is not None
            }
            settings = dataclasses.replace(settings, **changes)
        return dataclasses.replace(settings, stages=())


@dataclass(frozen=True, slots=True, kw_only=True)
class StageConfig:
    """What changes in the mixture from a step on; what is left out stays as it was."""

    from_step: int
    """First step of this mixture, counted from 0."""
    family_temperature: float | None = None
    """See MixtureConfig."""
    language_temperature: float | None = None
    """See MixtureConfig."""
    max_epochs: float | None = None
    """See MixtureConfig."""
    families: dict[str, float] | None = None
    """Replaces the families' fixed shares."""
    languages: dict[str, float] | None = None
    """Replaces the languages' fixed shares."""
    sources: dict[str, float] | None = None
    """Replaces the sources' fixed shares."""

    def __post_init__(self) -> None:
        check_minimums(self, "data.mixture.stages", from_step=1)
        check_shares(self, "data.mixture.stages")


def check_shares(config: MixtureConfig | StageConfig, prefix: str) -> None:
    """Checks the settings that can be judged without the data; raises DataError."""
    for name in ("family_temperature", "language_temperature", "max_epochs"):
        value = getattr(config, name)
        if value is not None and not value >= 0.1:
            raise DataError(f"{prefix}.{name}={value} must be at least 0.1")
    for name in ("families", "languages", "sources"):
        for key, share in (getattr(config, name) or {}).items():
            if not 0 <= share <= 1:
                raise DataError(
                    f"{prefix}.{name}.{key}={share} must be between 0 and 1: it is a share"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Capped:
    """A language that the cap on epochs holds back."""

    language: str
    """Language code."""
    wanted_epochs: float
    """Epochs it would be read by the run's end without the cap."""
    capped_epochs: float
    """Epochs it is read."""

    def __str__(self) -> str:
        return (
            f"data.mixture.max_epochs holds {self.language} at {self.capped_epochs:.2f} epochs, "
            f"its share asked for {self.wanted_epochs:.2f}; the rest goes to others"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Horizon:
    """The steps an entry is decided for, and what comes before and after them."""

    from_step: int
    """First step of the entry."""
    until_step: int
    """First step after it: where the next entry begins, or the run's end."""
    last_step: int
    """The run's end, by which the caps hold."""
    read: Mapping[str, int] = field(default_factory=dict)
    """Source -> sequences read before."""


def decide(
    mixture: MixtureConfig,
    manifest: Manifest,
    horizon: Horizon,
    *,
    slots: int,
    slot_sequences: int,
    sequence_length: int,
    quarantine: Mapping[str, Mapping[str, tuple[int, int]]] | None = None,
    reason: str = "",
    edited: bool = False,
) -> tuple[LedgerEntry, list[Capped]]:
    """An entry of the ledger, and what its caps held back.

    An epoch of a language is one pass over each of its sources that is read, the sequences in
    quarantine left out; documents that stand for several (`copies`) are passed over as often.

    Raises:
        DataError: a name that the manifest lacks, shares of more than 1, nothing left to read, or
            caps that leave less text than the steps read.
    """
    languages = {code: entry.sources for code, entry in manifest.languages.items()}
    _check_names("families", mixture.families, manifest.families)
    _check_names("languages", mixture.languages, languages)
    _check_names("sources", mixture.sources, manifest.sources)
    lengths = epoch_lengths(manifest, sequence_length)
    shut = quarantine or {}
    sources: dict[str, dict[str, float]] = {}
    for code, of_language in languages.items():
        # A source with less than one sequence has nothing to give.
        sizes = {
            s.name: float(s.shards.tokens * s.copies)
            for s in of_language
            if lengths[s.name] and mixture.sources.get(s.name) != 0
        }
        if mixture.languages.get(code) == 0:
            continue
        if not any(lengths[s.name] for s in of_language):
            raise DataError(
                f"{code} has {manifest.languages[code].train_tokens} training tokens, less than "
                f"one sequence of data.sequence_length={sequence_length}: shorten it, or leave "
                f"the language out with data.mixture.languages.{code}=0"
            )
        if sizes:
            sources[code] = _fixed(sizes, mixture.sources, 1.0, f"the sources of {code}")
    members: dict[str, dict[str, float]] = {}
    for code in sources:
        entry = manifest.languages[code]
        if mixture.families.get(entry.family) != 0:
            members.setdefault(entry.family, {})[code] = float(
                sum(s.shards.tokens * s.copies for s in entry.sources if s.name in sources[code])
            )
    if not members:
        raise DataError("data.mixture leaves no language to read: give one a share above 0")
    families = _fixed(
        {family: sum(sizes.values()) for family, sizes in members.items()},
        mixture.families,
        mixture.family_temperature,
        "the families",
    )
    within = {
        family: _fixed(
            sizes, mixture.languages, mixture.language_temperature, f"the languages of {family}"
        )
        for family, sizes in members.items()
    }
    held: list[Capped] = []
    if mixture.max_epochs is not None:
        readable = {
            name: length - len(shut_positions(shut.get(name, {}), length, sequence_length))
            for name, length in lengths.items()
        }
        epoch = {
            code: sum(readable[name] * manifest.sources[name].copies for name in shares)
            for code, shares in sources.items()
        }
        read = {
            code: sum(horizon.read.get(name, 0) for name in shares)
            for code, shares in sources.items()
        }
        families, within, held = _capped(
            mixture.max_epochs, families, within, epoch, read, horizon, slots, slot_sequences
        )
    kept = [code for shares in within.values() for code in shares]
    return (
        LedgerEntry(
            from_step=horizon.from_step,
            slots=slots,
            families=integer_shares(families),
            languages={f: integer_shares(shares) for f, shares in sorted(within.items())},
            sources={code: integer_shares(sources[code]) for code in sorted(kept)},
            transforms={
                name: dict(manifest.sources[name].transform)
                for code in sorted(kept)
                for name in sources[code]
                if manifest.sources[name].transform
            },
            quarantine={
                name: dict(shut[name])
                for code in sorted(kept)
                for name in sources[code]
                if name in shut
            },
            manifest_hash=manifest.hash,
            settings={k: v for k, v in dataclasses.asdict(mixture).items() if k != "stages"},
            reason=reason,
            edited=edited,
            until_step=None if mixture.max_epochs is None else horizon.last_step,
        ),
        held,
    )


def _check_names(kind: str, given: Collection[str], known: Collection[str]) -> None:
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, sorted(known), 1)
            told = f"did you mean {near[0]}?" if near else f"known: {', '.join(sorted(known)[:8])}"
            raise DataError(f"data.mixture.{kind}.{name}: the prepared folder has none; {told}")


def _fixed(
    sizes: Mapping[str, float], fixed: Mapping[str, float], temperature: float, of: str
) -> dict[str, float]:
    """Shares that sum to 1: the fixed ones as they are, the others by temperature."""
    given = {name: fixed[name] for name in sizes if name in fixed}
    free = {name: size for name, size in sizes.items() if name not in fixed}
    left = 1 - sum(given.values())
    if left < -1e-9:
        raise DataError(
            f"data.mixture: the fixed shares of {of} sum to {sum(given.values()):g}: at most 1"
        )
    if free and left <= 1e-9:
        raise DataError(
            f"data.mixture: the fixed shares of {of} leave nothing for {', '.join(sorted(free))}: "
            "lower them, or give those a share of 0"
        )
    if not free:
        if left > 1e-6:
            raise DataError(
                f"data.mixture: the fixed shares of {of} sum to {sum(given.values()):g} and leave "
                "nobody for the rest: make them sum to 1, or give one of them no share"
            )
        return given
    # Scaled by the largest, so that no power overflows.
    largest = max(free.values())
    powers = {name: (size / largest) ** (1 / temperature) for name, size in free.items()}
    total = sum(powers.values())
    return given | {name: left * power / total for name, power in powers.items()}


def _capped(
    max_epochs: float,
    families: Mapping[str, float],
    within: Mapping[str, Mapping[str, float]],
    sizes: Mapping[str, int],
    read: Mapping[str, int],
    horizon: Horizon,
    slots: int,
    slot_sequences: int,
) -> tuple[dict[str, float], dict[str, dict[str, float]], list[Capped]]:
    """Shares of the horizon's sequences with every language below its cap."""
    per_step = slots * slot_sequences
    budget = (horizon.until_step - horizon.from_step) * per_step
    part = budget / ((horizon.last_step - horizon.from_step) * per_step)
    capacity: dict[str, float] = {}
    for family, shares in within.items():
        for code in shares:
            # Counts are within a slot of the family's target and a sequence of the language's and
            # the source's; shares are whole parts of 2^-24.
            rounding = slot_sequences + 2 + budget / SHARE_TOTAL
            left = (max_epochs * sizes[code] - read[code]) * part - rounding
            if left <= 0:
                raise DataError(
                    f"data.mixture.max_epochs={max_epochs:g}: {code} has {sizes[code]} sequences, "
                    f"{read[code]} read by step {horizon.from_step}, which is too little for a "
                    f"share of {family}'s slots: leave it out with "
                    f"data.mixture.languages.{code}=0, or raise the cap"
                )
            capacity[code] = left
    total = sum(capacity.values())
    if total < budget:
        raise DataError(
            f"data.mixture.max_epochs={max_epochs:g} allows {total:,.0f} sequences from step "
            f"{horizon.from_step} to {horizon.until_step}, which read {budget:,}: fewer steps, "
            "more text, or a higher cap"
        )
    of_family = _fill(families, {f: sum(capacity[c] for c in within[f]) for f in families}, budget)
    filled: dict[str, dict[str, float]] = {}
    held: list[Capped] = []
    for family, shares in within.items():
        filled[family] = _fill(shares, {c: capacity[c] for c in shares}, of_family[family])
        for code, number in sorted(filled[family].items()):
            wanted = families[family] * shares[code] * budget
            if number >= capacity[code] * (1 - 1e-9) and wanted > number:
                held.append(
                    Capped(
                        language=code,
                        wanted_epochs=(read[code] + wanted / part) / sizes[code],
                        capped_epochs=(read[code] + number / part) / sizes[code],
                    )
                )
    return of_family, filled, held


def _fill(
    shares: Mapping[str, float], capacity: Mapping[str, float], amount: float
) -> dict[str, float]:
    """Pours an amount into vessels in proportion to shares, none above its capacity."""
    poured: dict[str, float] = {}
    open_shares = sum(shares.values())
    # The vessel that overflows first comes first.
    for name in sorted(shares, key=lambda n: (capacity[n] / shares[n], n)):
        level = amount * shares[name] / open_shares if open_shares > 0 else 0.0
        poured[name] = min(capacity[name], level)
        amount -= poured[name]
        open_shares -= shares[name]
    return poured


def decide_ledger(
    mixture: MixtureConfig,
    manifest: Manifest,
    *,
    steps: int,
    seed: int,
    slots: int,
    slot_sequences: int,
    sequence_length: int,
    warn: Callable[[Capped], None] = lambda _: None,
) -> Ledger:
    """The ledger a run begins with: one entry for the beginning and one for each stage.

    Args:
        steps: the run's end, by which caps hold.
        warn: told of every language that a cap holds back.
    Raises:
        DataError: see `decide`; a stage that begins after the run's end.
    """
    begins = [0, *(stage.from_step for stage in mixture.stages)]
    if begins[-1] >= steps:
        raise DataError(
            f"data.mixture.stages: a stage from step {begins[-1]} begins after the run's last "
            f"step, run.steps={steps}: give the run more steps, or drop the stage"
        )
    ledger = Ledger(
        seed=seed, sequence_length=sequence_length, slot_sequences=slot_sequences, entries=()
    )
    for number, from_step in enumerate(begins):
        read: Mapping[str, int] = {}
        capped = mixture.at_stage(number)
        if ledger.entries and capped.max_epochs is not None:
            read = Order(ledger, epoch_lengths(manifest, sequence_length)).cursors(from_step)
        entry, held = decide(
            capped,
            manifest,
            Horizon(
                from_step=from_step,
                until_step=begins[number + 1] if number + 1 < len(begins) else steps,
                last_step=steps,
                read=read,
            ),
            slots=slots,
            slot_sequences=slot_sequences,
            sequence_length=sequence_length,
            reason="the run's beginning" if not number else "a scheduled stage",
        )
        for language in held:
            warn(language)
        ledger = dataclasses.replace(ledger, entries=(*ledger.entries, entry))
    return ledger


def epoch_lengths(manifest: Manifest, sequence_length: int) -> dict[str, int]:
    """Packed sequences of each source, an epoch's length."""
    return {
        name: sequences_in(source.shards.tokens, sequence_length)
        for name, source in manifest.sources.items()
    }
