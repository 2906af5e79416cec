"""configs/: every experiment builds, the default is what it was, mistakes are answered."""

from pathlib import Path

import pytest

from xylem.model.decoder import build_decoder
from xylem.train.compose import compose_config, config_groups, from_yaml, to_yaml
from xylem.train.errors import UserError

GOLDEN = Path(__file__).parent.parent / "golden"


@pytest.mark.parametrize("name", config_groups()["experiment"])
def test_every_experiment_composes_and_its_model_builds(name: str) -> None:
    config = compose_config([f"experiment={name}"])
    decoder = build_decoder(config.model, ("one", "two"), seed=0, device="meta")
    assert all(parameter.is_meta for parameter in decoder.parameters())
    assert config.run.name == name


@pytest.mark.parametrize("name", config_groups()["model"])
def test_every_model_builds(name: str) -> None:
    config = compose_config([f"model={name}"])
    build_decoder(config.model, ("one",), seed=0, device="meta")


def test_the_default_config_is_the_golden_one() -> None:
    """A new or changed knob shows in review: update the golden file with it."""
    assert to_yaml(compose_config([])) == (GOLDEN / "default_config.yaml").read_text()


def test_a_resolved_config_reads_back_equal(tmp_path: Path) -> None:
    config = compose_config(["experiment=real_text", "data.families.groups={x: [eng_Latn]}"])
    (tmp_path / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    assert from_yaml(tmp_path / "config.yaml") == config


def test_the_dense_control_has_equal_active_parameters() -> None:
    from xylem.model.accounting import count_parameters, forward_flops_per_token

    arms = (compose_config([f"experiment={n}"]).model for n in ("real_text", "real_text_dense"))
    families = ("one", "two")
    family, dense = arms
    assert count_parameters(family, families).active == count_parameters(dense, families).total
    assert forward_flops_per_token(family, families, 512) == forward_flops_per_token(
        dense, families, 512
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["optim.weigth_decay=0.2"], "did you mean 'optim.weight_decay'"),
        (["+optim.weigth_decay=0.2"], "did you mean 'optim.weight_decay'"),
        (["experiment=quickstrat"], "has no quickstrat.yaml; known: .*quickstart"),
        (["model=huge"], "configs/model/ has no huge.yaml"),
        (["optim.lr=1"], "did you mean 'optim.learning_rate'"),
        (["steps"], "'steps' is no setting: write key=value"),
        (["data=default"], "not set: data.prepared; give it"),
        (["run.steps=0"], "run.steps=0 must be at least 1"),
        (["run.name=a/b"], "must be a plain folder name"),
        (["run.name=.."], "must be a plain folder name"),
        (["checkpoint.every=0"], "checkpoint.every=0 must be at least 1"),
        (["checkpoint.keep=0"], "checkpoint.keep=0 must be at least 1"),
        (["logging.every=0"], "logging.every=0 must be at least 1"),
        (["evaluation.rows=0"], "evaluation.rows=0 must be at least 1"),
        (["engine.micro_slots=0"], "engine.micro_slots=0 must be at least 1"),
        (["data.slots_per_step=0"], "data.slots_per_step=0 must be at least 1"),
        (["data.slot_sequences=0"], "data.slot_sequences=0 must be at least 1"),
        (["data.mixture.family_temperature=0"], "family_temperature=0.* must be at least 0.1"),
        (["optim.learning_rate=-1"], "optim.learning_rate=-1.* must be at least 0"),
        (["model.kv_heads=3"], "model.heads=4 is not a multiple of model.kv_heads=3"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(settings: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        compose_config(settings)
    assert "\n" not in str(caught.value)
