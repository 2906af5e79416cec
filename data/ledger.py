"""The mixture ledger: what was decided about the mixture, and from which step on.

An entry says how a step's slots are shared out over families, languages and sources, in exact
integers, so that the order needs no floating point and no state. Entries are only ever appended; an
edit of the past is refused. Read next: `mixture.py` (how an entry is decided), `order.py`.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from .errors import DataError

ORDER_VERSION = 2
"""Changes with every change of the order's arithmetic; a run resumes only under its own version."""

SHARE_TOTAL = 1 << 24
"""Denominator of all shares: a share is an integer of this many parts, at least 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerEntry:
    """The mixture from one step on."""

    from_step: int
    """First step of this mixture, counted from 0."""
    slots: int
    """Slots a step, S."""
    families: dict[str, int]
    """Family -> share of the slots, in parts of SHARE_TOTAL; sums to it."""
    languages: dict[str, dict[str, int]]
    """Family -> language -> share of that family's sequences, in parts of SHARE_TOTAL."""
    sources: dict[str, dict[str, int]]
    """Language -> source -> share of that language's sequences, in parts of SHARE_TOTAL."""
    transforms: dict[str, dict[str, Any]] = field(default_factory=dict)
    """How derived sources were made, by source."""
    quarantine: dict[str, dict[str, tuple[int, int]]] = field(default_factory=dict)
    """Source -> shard -> the tokens of the source's line that lie in it, [first, last + 1).
    Sequences that hold one of them are passed over."""
    manifest_hash: str
    """Hash of the manifest whose shards are read."""
    settings: dict[str, Any] = field(default_factory=dict)
    """The settings of `data.mixture` that it was decided with."""
    reason: str = ""
    """Why it was decided, for people."""
    edited: bool = False
    """Whether a person decided it while the run lived, rather than the config."""
    until_step: int | None = None
    """The run's end by which a cap on epochs holds; None without a cap."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """All decisions about the mixture, oldest first."""

    seed: int
    """Key of every permutation."""
    sequence_length: int
    """Tokens a sequence, T."""
    slot_sequences: int
    """Sequences a slot, k."""
    entries: tuple[LedgerEntry, ...]
    """At least one; the first begins at step 0."""
    order_version: int = ORDER_VERSION
    """Version of the order's arithmetic that wrote this."""

    def index_at(self, step: int) -> int:
        """Which entry is in force at a step."""
        return max(i for i, entry in enumerate(self.entries) if entry.from_step <= step)

    def at(self, step: int) -> LedgerEntry:
        """The entry in force at a step."""
        return self.entries[self.index_at(step)]

    def targets(self, step: int) -> dict[str, float]:
        """Sequences of each source that the first `step` steps are to read, by the exact shares."""
        targets: dict[str, float] = {}
        for i, entry in enumerate(self.entries):
            until = self.entries[i + 1].from_step if i + 1 < len(self.entries) else step
            steps = max(0, min(step, until) - entry.from_step)
            sequences = steps * entry.slots * self.slot_sequences / SHARE_TOTAL**3
            for family, languages in entry.languages.items():
                for code, share in languages.items():
                    part = sequences * entry.families[family] * share
                    for source, parts in entry.sources[code].items():
                        targets[source] = targets.get(source, 0.0) + part * parts
        return targets

    def edit(self, entry: LedgerEntry, *, current_step: int) -> "Ledger":
        """This ledger with one more decision, for a step that has not run yet.

        Raises:
            DataError: the entry would change a step that has run, or one already decided.
        """
        if entry.from_step < current_step:
            raise DataError(
                f"a mixture from step {entry.from_step} would edit the past: the run is at step "
                f"{current_step}; choose a step of at least {current_step}"
            )
        last = self.entries[-1].from_step
        if entry.from_step <= last:
            raise DataError(
                f"a mixture from step {entry.from_step} comes not after the last decision (from "
                f"step {last}): choose a step after {last}, or forget what was decided for this "
                "step and later ones with --drop-later"
            )
        return dataclasses.replace(self, entries=(*self.entries, entry))

    def before(self, step: int) -> "Ledger":
        """The decisions that the steps before `step` were made under: what no edit may change."""
        entries = tuple(entry for entry in self.entries if entry.from_step < step)
        return dataclasses.replace(self, entries=entries)

    def to_json(self) -> str:
        """Canonical text: equal ledgers, equal bytes.

        What an entry leaves at its default is left out, so that a field that a later Xylem adds
        changes no hash.
        """
        fields = asdict(self) | {"entries": [_told(entry) for entry in self.entries]}
        return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False)

    @property
    def hash(self) -> str:
        """sha256 of the canonical text."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def ledger_from_json(text: str) -> Ledger:
    """Reads what `Ledger.to_json` wrote.

    Raises:
        DataError: no ledger, or one written by another version of the order's arithmetic.
    """
    try:
        fields = json.loads(text)
        version = fields["order_version"]
    except (ValueError, KeyError, TypeError):
        raise DataError(
            "this is no mixture ledger: restore it from a checkpoint's state.json"
        ) from None
    if version != ORDER_VERSION:
        raise DataError(
            f"this ledger was written by order version {version}, this Xylem has "
            f"version {ORDER_VERSION}: resume with the version that began the run"
        )
    try:
        entries = tuple(_entry(entry) for entry in fields.pop("entries"))
        return Ledger(entries=entries, **fields)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        name = str(error).rpartition(" ")[2]
        raise DataError(
            f"this ledger has a field that this Xylem does not know, or lacks one ({name}): resume "
            "with the version that wrote it"
        ) from None


def _told(entry: LedgerEntry) -> dict[str, Any]:
    """An entry's fields, without those at their defaults."""
    told: dict[str, Any] = {}
    for each in dataclasses.fields(entry):
        value = getattr(entry, each.name)
        made = each.default_factory
        default = each.default if made is dataclasses.MISSING else made()
        if default is dataclasses.MISSING or value != default:
            told[each.name] = value
    return told


def _entry(fields: dict[str, Any]) -> LedgerEntry:
    quarantine = {
        source: {shard: (int(first), int(stop)) for shard, (first, stop) in shards.items()}
        for source, shards in fields.pop("quarantine", {}).items()
    }
    return LedgerEntry(quarantine=quarantine, **fields)


def integer_shares(weights: Mapping[str, float]) -> dict[str, int]:
    """Weights as integers that sum to SHARE_TOTAL, each at least 1, by largest remainder.

    Args:
        weights: positive numbers of any scale, by name.
    Returns:
        name -> parts of SHARE_TOTAL, names sorted.
    """
    names = sorted(weights)
    total = sum(weights.values())
    spare = SHARE_TOTAL - len(names)
    exact = [weights[name] / total * spare for name in names]
    parts = [1 + int(x) for x in exact]
    by_remainder = sorted(range(len(names)), key=lambda i: (int(exact[i]) - exact[i], names[i]))
    for i in by_remainder[: SHARE_TOTAL - sum(parts)]:
        parts[i] += 1
    return dict(zip(names, parts, strict=True))
