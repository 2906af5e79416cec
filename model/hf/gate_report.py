"""What the export gate found: named numbers, their bounds, and whether they are within.

Read next: `gate.py`, which measures them.
"""

import math
from dataclasses import dataclass
from typing import Any


class GateFailure(RuntimeError):
    """An export that is not the model it was made from. Names the check, the number, the bound."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One measured number and the bound it is held to."""

    name: str
    """Identifier."""
    meaning: str
    """What the number is, in words."""
    value: float
    """What was measured."""
    bound: float
    """The largest value that passes, or the smallest if `at_least`."""
    at_least: bool = False
    """Whether the bound is a lower one."""

    @property
    def passed(self) -> bool:
        """Whether the number is within its bound; a NaN never is."""
        return self.value >= self.bound if self.at_least else self.value <= self.bound

    def __str__(self) -> str:
        word = "at least" if self.at_least else "at most"
        return f"{self.name} is {self.value:.4g}, {word} {self.bound:.4g} passes ({self.meaning})"


@dataclass(frozen=True, slots=True, kw_only=True)
class GateReport:
    """What the gate measured on one export."""

    family: str
    """The exported family."""
    real_tokens: int
    """Real tokens that logits were compared on."""
    random_tokens: int
    """Random ids that logits were compared on."""
    spread: float
    """Standard deviation of the native logits over the vocabulary, mean over positions."""
    other_family_difference: float | None
    """max |logit difference| between this family and another of the model, if it has one."""
    checks: tuple[Check, ...]
    """Every check, in the order it was made."""

    @property
    def failed(self) -> tuple[str, ...]:
        """Names of the checks that did not pass."""
        return tuple(check.name for check in self.checks if not check.passed)

    def require(self) -> None:
        """Raises GateFailure unless every check passed."""
        failures = [str(check) for check in self.checks if not check.passed]
        if failures:
            raise GateFailure(f"export of family {self.family} is not exact: {'; '.join(failures)}")

    def to_json(self) -> dict[str, Any]:
        """Plain values for gate.json; a number that is not finite becomes its name."""

        def plain(value: float) -> float | str:
            return value if math.isfinite(value) else str(value)

        return {
            "passed": not self.failed,
            "family": self.family,
            "real_tokens": self.real_tokens,
            "random_tokens": self.random_tokens,
            "logit_spread": plain(self.spread),
            "other_family_difference": self.other_family_difference,
            "checks": [
                {
                    "name": check.name,
                    "meaning": check.meaning,
                    "value": plain(check.value),
                    "bound": plain(check.bound),
                    "kind": "at_least" if check.at_least else "at_most",
                    "passed": check.passed,
                }
                for check in self.checks
            ],
        }
