"""The strict builder: unknown keys with a suggestion, all mistakes at once."""

from dataclasses import dataclass, field
from typing import Literal

import pytest

from xylem.train.build import build
from xylem.train.errors import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    weight_decay: float = 0.1
    names: tuple[str, ...] = ()
    table: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outer:
    steps: int
    optim: Inner
    kind: Literal["adamw", "muon"] = "adamw"
    path: str | None = None
    on: bool = False

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise UserError(f"steps={self.steps} must be at least 0")


def test_builds_nested_values_with_defaults_and_conversions() -> None:
    built = build(
        Outer, {"steps": 3, "optim": {"weight_decay": 1, "names": ["a"], "table": {"x": 1}}}
    )
    assert built == Outer(steps=3, optim=Inner(weight_decay=1.0, names=("a",), table={"x": 1}))
    assert isinstance(built.optim.weight_decay, float)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"optim": {"weigth_decay": 1}}, "unknown key 'optim.weigth_decay'; did you mean 'optim.w"),
        ({"stepz": 3}, "unknown key 'stepz'; did you mean 'steps'?"),
        ({"weight_decay": 3}, "unknown key 'weight_decay'; did you mean 'optim.weight_decay'?"),
        ({"steps": "3"}, "steps='3' must be a whole number"),
        ({"steps": True}, "steps=True must be a whole number"),
        ({"on": 1}, "on=1 must be true or false"),
        ({"kind": "adam"}, "kind='adam' must be one of adamw, muon; did you mean 'adamw'?"),
        ({"optim": {"names": "a"}}, "optim.names='a' must be a list"),
        ({"optim": {"names": [1]}}, r"optim.names\[0\]=1 must be text"),
        ({"optim": {"table": {"x": "y"}}}, "optim.table.x='y' must be a whole number"),
        ({"optim": 3}, "optim=3 must be a mapping"),
        ({"steps": -1}, "steps=-1 must be at least 0"),
    ],
)
def test_a_mistake_is_one_line(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        build(Outer, {"steps": 1, "optim": {}, **values})
    assert "\n" not in str(caught.value)


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(UserError) as caught:
        build(Outer, {"optim": {"weight_decay": "x"}, "knd": "muon"})
    told = str(caught.value)
    assert "missing key 'steps'" in told
    assert "optim.weight_decay='x' must be a number" in told
    assert "unknown key 'knd'; did you mean 'kind'?" in told
