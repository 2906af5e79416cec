"""From `configs/` and the command line to a RunConfig. Hydra only composes YAML here.

Overrides reach the strict builder even where Hydra would refuse them first, so that a misspelt key
is always answered with the nearest known one.
"""

import dataclasses
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from .build import build
from .config import RunConfig
from .errors import UserError

_SHARE = re.compile(r"\+{0,2}data\.mixture\.(families|languages|sources)\.([^=]+)=(.*)")


def config_groups() -> dict[str, list[str]]:
    """Config group -> the names that can be chosen in it."""
    root = resources.files("xylem.configs")
    return {
        group.name: sorted(
            option.name[:-5] for option in group.iterdir() if option.name.endswith(".yaml")
        )
        for group in root.iterdir()
        if group.is_dir() and not group.name.startswith("_")
    }


def compose_mapping(overrides: Sequence[str]) -> dict[str, Any]:
    """The composed, resolved YAML as plain values.

    Raises:
        UserError: an override is no `key=value`, or names an unknown group option.
    """
    groups = config_groups()
    prepared = []
    shares = [(override, share) for override in overrides if (share := named_share(override))]
    overrides = [override for override in overrides if not named_share(override)]
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise UserError(
                f"{override!r} is no setting: write key=value, for example run.steps=10"
            )
        bare = key.lstrip("+~")
        if bare in groups:
            if value not in groups[bare] and (bare, value) != ("experiment", "null"):
                known = ", ".join(groups[bare])
                raise UserError(f"{override}: configs/{bare}/ has no {value}.yaml; known: {known}")
            prepared.append(f"+{bare}={value}" if bare == "experiment" else f"{bare}={value}")
        else:
            prepared.append(override if key.startswith("~") else f"++{bare}={value}")
    GlobalHydra.instance().clear()
    try:
        with initialize_config_module("xylem.configs", version_base="1.3"):
            composed = compose(config_name="config", overrides=prepared)
        unset = sorted(OmegaConf.missing_keys(composed))
        if unset:
            raise UserError(f"not set: {', '.join(unset)}; give it, for example {unset[0]}=VALUE")
        values = OmegaConf.to_container(composed, resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(" ".join(str(error).split())) from error
    assert isinstance(values, dict)
    for override, (table, name, value) in shares:
        try:
            values["data"]["mixture"][table][name] = value
        except (KeyError, TypeError):
            raise UserError(f"{override}: there is no data.mixture to set it in") from None
    return {str(key): value for key, value in values.items()}


def named_share(override: str) -> tuple[str, str, Any] | None:
    """`data.mixture.sources.swh_Latn@books=0.5` -> (`sources`, `swh_Latn@books`, 0.5).

    Names of sources hold dots and `@`, which mean something else to Hydra. None for any other
    override.
    """
    found = _SHARE.fullmatch(override)
    return (found[1], found[2], yaml.safe_load(found[3])) if found else None


def compose_config(overrides: Sequence[str]) -> RunConfig:
    """The run config of a command line.

    Raises:
        UserError: anything wrong with it, all at once.
    """
    return build(RunConfig, compose_mapping(overrides))


def to_yaml(config: RunConfig) -> str:
    """The resolved config as YAML; `from_yaml` reads it back."""
    plain = _plain(dataclasses.asdict(config))
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)


def from_yaml(path: Path) -> RunConfig:
    """A run's own config.yaml."""
    return build(RunConfig, yaml.safe_load(path.read_text(encoding="utf-8")))


def flatten(config: RunConfig) -> dict[str, Any]:
    """Dotted key -> value, for comparing two configs."""

    def walk(prefix: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict) or not value:
            return {prefix: value}
        return {
            k: v for key, inner in value.items() for k, v in walk(f"{prefix}.{key}", inner).items()
        }

    plain = _plain(dataclasses.asdict(config))
    return {k: v for key, inner in plain.items() for k, v in walk(key, inner).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value
