"""What DeepSpeed is told of a run, and what is refused before it is asked."""

import importlib.metadata
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from xylem.model.layout import Layout
from xylem.train.compose import compose_config
from xylem.train.engines.deepspeed import library
from xylem.train.engines.deepspeed.config import ZeroConfig
from xylem.train.engines.deepspeed.engine import DeepSpeedEngine
from xylem.train.engines.deepspeed.settings import check_settings, deepspeed_config
from xylem.train.errors import UserError

SETTINGS = ("engine=deepspeed", "data.slots_per_step=16", "data.slot_sequences=3")


def told(*more: str, readers: int = 2) -> dict[str, Any]:
    return deepspeed_config(compose_config((*SETTINGS, *more)), readers)


@pytest.mark.parametrize("readers", [1, 2, 4])
def test_batch_sizes_are_those_of_the_run(readers: int) -> None:
    config = told("engine.micro_slots=2", readers=readers)
    micro = config["train_micro_batch_size_per_gpu"]
    assert config["train_batch_size"] == 16 * 3
    assert micro == 2 * 3
    assert config["gradient_accumulation_steps"] * micro * readers == config["train_batch_size"]


def test_clipping_is_that_of_the_run_and_half_precisions_are_off() -> None:
    config = told("optim.clip_norm=0.25", "engine.precision=bf16")
    assert config["gradient_clipping"] == 0.25
    assert not config["bf16"]["enabled"] and not config["fp16"]["enabled"]
    assert "optimizer" not in config and "scheduler" not in config


def test_gradients_are_summed_wherever_deepspeed_can() -> None:
    assert [told(f"engine.zero.stage={n}")["gradient_allreduce_op"] for n in (1, 2, 3)] == [
        "sum", "sum", "mean",
    ]  # fmt: skip


def test_offload_is_told_with_its_path() -> None:
    assert "offload_optimizer" not in told()["zero_optimization"]
    on_cpu = told("engine.zero.offload=cpu")
    assert on_cpu["zero_optimization"]["offload_optimizer"]["device"] == "cpu"
    assert on_cpu["zero_force_ds_cpu_optimizer"] is False
    on_disk = told(
        "engine.zero.stage=3", "engine.zero.offload=nvme", "engine.zero.nvme_path=/local/disk"
    )["zero_optimization"]["offload_optimizer"]
    assert on_disk == {"device": "nvme", "nvme_path": "/local/disk", "pin_memory": False}


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_deepspeed_takes_its_config_as_it_stands(stage: int) -> None:
    pytest.importorskip("deepspeed", reason="the extra `deepspeed` is not installed")
    from deepspeed.runtime.zero.config import get_zero_config

    zero = told(f"engine.zero.stage={stage}", "engine.zero.bucket_elements=1000")
    understood = get_zero_config(zero)
    assert understood.stage == stage
    assert understood.reduce_bucket_size == understood.allgather_bucket_size == 1000
    assert understood.contiguous_gradients and not understood.overlap_comm


def test_a_setting_without_effect_is_refused() -> None:
    for settings, told_so in (
        (
            {"persistent_elements": 5},
            "persistent_elements=5 has no effect with engine.zero.stage=1",
        ),
        ({"stage": 2, "prefetch_elements": 5}, "set engine.zero.stage=3"),
        ({"stage": 3, "nvme_path": "/x"}, "has no effect with engine.zero.offload=none"),
        ({"stage": 3, "offload": "nvme"}, "offload=nvme needs engine.zero.nvme_path"),
        ({"stage": 1, "offload": "nvme", "nvme_path": "/x"}, "needs engine.zero.stage=3, not 1"),
        ({"bucket_elements": 7}, "bucket_elements=7 must be even: take 8"),
        ({"bucket_elements": 1}, "bucket_elements=1"),
    ):
        with pytest.raises(ValueError, match=told_so):
            ZeroConfig(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["tensor", "context", "pipeline", "expert"])
def test_layouts_that_zero_cannot_are_refused_with_the_way_out(name: str) -> None:
    layout = Layout(**{"data": 2, name: 2})
    with pytest.raises(UserError, match=f"{name}=2 cannot run with engine.name=deepspeed") as said:
        check_settings(compose_config(SETTINGS), layout)
    assert "engine.name=torch or megatron" in str(said.value)


def test_stage_3_with_families_apart_is_refused_with_the_way_out() -> None:
    layout = Layout(data=1, family=2)
    check_settings(compose_config(SETTINGS), layout)
    with pytest.raises(UserError, match="set engine.layout.family=1, or engine.zero.stage=1 or 2"):
        check_settings(compose_config((*SETTINGS, "engine.zero.stage=3")), layout)


@pytest.mark.parametrize(
    ("more", "told_so"),
    [
        (("optim=muon",), "optim.name=muon cannot run with engine.name=deepspeed"),
        (
            (
                "engine.zero.stage=3",
                "engine.zero.offload=nvme",
                "engine.zero.nvme_path=/local/disk",
            ),
            "engine.zero.offload=nvme cannot run yet",
        ),
        (("engine.shard=full",), "engine.shard has no effect with engine.name=deepspeed"),
        (
            ("engine.compile=true", "engine.zero.stage=3"),
            "engine.compile=true cannot run with engine.zero.stage=3",
        ),
    ],
)
def test_what_zero_cannot_do_is_refused(more: tuple[str, ...], told_so: str) -> None:
    with pytest.raises(UserError, match=told_so):
        check_settings(compose_config((*SETTINGS, *more)), Layout(data=2))


def test_a_score_that_fails_leaves_the_model_training() -> None:
    def fails(run: object) -> None:
        raise RuntimeError("no memory")

    engine = object.__new__(DeepSpeedEngine)
    engine.decoder = torch.nn.Linear(1, 1)  # type: ignore[assignment]
    engine.processes = SimpleNamespace(autocast=nullcontext)  # type: ignore[assignment]
    engine.zero = SimpleNamespace(engine=SimpleNamespace(module=fails))  # type: ignore[assignment]
    nothing = torch.zeros(1, 1)
    with pytest.raises(RuntimeError, match="no memory"):
        engine.score(nothing, nothing, nothing, ())
    assert engine.decoder.training


def test_without_deepspeed_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(UserError, match=r"pip install 'xylem\[deepspeed\]'"):
        library.check_version()


def test_another_deepspeed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.20.0")
    with pytest.raises(UserError, match=r"0\.20\.0 is installed: pip install deepspeed==0\.19\.8"):
        library.check_version()


def test_the_deepspeed_that_is_installed_is_the_known_one() -> None:
    pytest.importorskip("deepspeed", reason="the extra `deepspeed` is not installed")
    library.check_version()
