"""The mixture ledger: what was decided about the mixture, and from which step on.

An entry says how a step's slots are shared out over families and languages, in exact integers, so
that the order needs no floating point and no state. Entries are only ever appended; an edit of the
past is refused. Read next: `order.py`.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from .errors import DataError

ORDER_VERSION = 1
"""Changes with every change of the order's arithmetic; a run resumes only under its own version."""

SHARE_TOTAL = 1 << 24
"""Denominator of all shares: a language's share is an integer of this many parts, at least 1."""


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
    manifest_hash: str
    """Hash of the manifest whose shards are read."""


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

    def at(self, step: int) -> LedgerEntry:
        """The entry in force at a step."""
        return next(entry for entry in reversed(self.entries) if entry.from_step <= step)

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
                f"a mixture from step {entry.from_step} comes before the last decision (from step "
                f"{last}): entries are appended in order"
            )
        return Ledger(
            seed=self.seed,
            sequence_length=self.sequence_length,
            slot_sequences=self.slot_sequences,
            entries=(*self.entries, entry),
            order_version=self.order_version,
        )

    def to_json(self) -> str:
        """Canonical text: equal ledgers, equal bytes."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @property
    def hash(self) -> str:
        """sha256 of the canonical text."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def ledger_from_json(text: str) -> Ledger:
    """Reads what `Ledger.to_json` wrote.

    Raises:
        DataError: written by another version of the order's arithmetic.
    """
    fields = json.loads(text)
    if fields["order_version"] != ORDER_VERSION:
        raise DataError(
            f"this ledger was written by order version {fields['order_version']}, this Xylem has "
            f"version {ORDER_VERSION}: resume with the version that began the run"
        )
    entries = tuple(LedgerEntry(**entry) for entry in fields.pop("entries"))
    return Ledger(entries=entries, **fields)


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


def temperature_entry(
    tokens: Mapping[str, Mapping[str, int]],
    *,
    slots: int,
    family_temperature: float,
    language_temperature: float,
    manifest_hash: str,
    from_step: int = 0,
) -> LedgerEntry:
    """A mixture by temperature: share proportional to tokens^(1/temperature), family then language.

    Args:
        tokens: family -> language -> training tokens.
    """
    families = {name: sum(sizes.values()) for name, sizes in tokens.items()}
    return LedgerEntry(
        from_step=from_step,
        slots=slots,
        families=integer_shares({f: n ** (1 / family_temperature) for f, n in families.items()}),
        languages={
            family: integer_shares({c: n ** (1 / language_temperature) for c, n in sizes.items()})
            for family, sizes in sorted(tokens.items())
        },
        manifest_hash=manifest_hash,
    )
