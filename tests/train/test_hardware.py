"""The hardware file: every entry is whole, and a wrong one is named."""

import dataclasses

import pytest
import torch

from xylem.train.config import EngineConfig
from xylem.train.engines.processes import Processes
from xylem.train.errors import UserError
from xylem.train.hardware import hardware_named, known_hardware, read_hardware


def test_every_device_of_the_issue_is_known_and_whole() -> None:
    known = known_hardware()
    assert {"h100", "h200", "a100", "gh200", "cpu"} <= set(known)
    for device in known.values():
        assert device.within_gb_s >= device.across_gb_s
        assert device.bf16_tflops > device.fp32_tflops
        assert device.within_latency_us <= device.across_latency_us


def test_what_a_step_reaches_is_a_share_of_the_peak() -> None:
    h100 = hardware_named("h100")
    assert h100.flops("bf16") == pytest.approx(989.4e12 * h100.compute_share)
    assert h100.flops("fp32") == pytest.approx(67e12 * h100.compute_share)


def test_unknown_hardware_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match="cluster.hardware='h10' is not in .* did you mean h100"):
        hardware_named("h10")
    with pytest.raises(UserError, match="known: h100, h200, a100, gh200, cpu"):
        hardware_named("tpu-v5")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"node": 0}, "configs/hardware.yaml, mine: node=0 must be more than 0"),
        ({"compute_share": 1.5}, "mine: compute_share=1.5 must be at most 1"),
        ({"across_gb_s": "fast"}, "mine: across_gb_s="),
        ({"tflops": 3.0}, "mine: unknown key 'tflops'"),
    ],
)
def test_a_wrong_entry_is_named(change: dict[str, object], message: str) -> None:
    values = dataclasses.asdict(hardware_named("cpu")) | change
    with pytest.raises(UserError, match=message):
        read_hardware("mine", values)


def test_an_entry_that_lacks_a_number_is_named() -> None:
    values = dataclasses.asdict(hardware_named("cpu"))
    del values["within_gb_s"]
    with pytest.raises(UserError, match="mine: missing key 'within_gb_s'"):
        read_hardware("mine", values)


def test_a_gpus_peak_is_that_of_its_own_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    processes = object.__new__(Processes)
    processes.config, processes.device = EngineConfig(), torch.device("cuda")
    for told, key in (("NVIDIA GH200 480GB", "gh200"), ("NVIDIA A100-SXM4-80GB", "a100")):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, told=told: told)
        expected = hardware_named(key).bf16_tflops * 1e12, f"datasheet of {key.upper()}"
        assert processes.peak_flops() == expected
