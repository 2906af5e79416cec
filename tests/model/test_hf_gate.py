"""The export gate: a good export passes, and each known bug fails it for the right reason."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from xylem.model.config import LayerPlan, ModelConfig
from xylem.model.decoder import Decoder, build_decoder
from xylem.model.errors import ModelError
from xylem.model.hf import gate
from xylem.model.hf.gate import bf16_checks, run_gate
from xylem.model.hf.gate_report import Check, GateFailure, GateReport
from xylem.model.hf.qwen3 import dense_state_dict, write_folder

FAMILIES = ("celtic", "mongolic", "uralic")
IDS = {"bos_id": 2, "eos_id": 3, "pad_id": 0}
LAST = 3
"""Index of the tiny decoder's last layer."""


def tiny_decoder(*, tied: bool = True, norm_eps: float = 1e-6) -> Decoder:
    """Experts of unequal width early and late, and weights that are far from their first values.

    At the initial std every layer hardly adds to the residual stream; three times it, with norm
    weights away from one, makes each part matter as in a trained model. The embedding stays small,
    as it does in training, so that a norm's epsilon matters too.
    """
    config = ModelConfig(
        vocab_size=320,
        hidden_size=64,
        heads=4,
        kv_heads=2,
        head_dim=16,
        norm_eps=norm_eps,
        tied_embeddings=tied,
        layer_plan=(
            LayerPlan(trunk_width=96, expert_width=48),
            LayerPlan(repeat=2, trunk_width=128),
            LayerPlan(trunk_width=80, expert_width=32),
        ),
    )
    decoder = build_decoder(config, FAMILIES, seed=5).eval()
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if name.endswith("norm.weight"):
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
            elif name != "embed.weight":
                parameter.mul_(3.0)
    return decoder


def real_documents(count: int = 60) -> list[np.ndarray]:
    """Documents with the begin and end token whose words are as unequal as a text's."""
    rng = np.random.default_rng(7)
    return [
        np.concatenate([[2], 4 + rng.zipf(1.3, rng.integers(8, 40)) % 316, [3]])
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return tiny_decoder()


@pytest.fixture(scope="module")
def good(decoder: Decoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "mongolic"
    write_folder(decoder, "mongolic", folder, **IDS, max_positions=128, provenance={})
    return folder


def gate_on(decoder: Decoder, folder: Path) -> GateReport:
    return run_gate(decoder, "mongolic", folder, real_documents(), **IDS)


def number(report: GateReport, name: str) -> Check:
    return next(check for check in report.checks if check.name == name)


def edited(
    good: Path, folder: Path, weights: Callable[[dict[str, Tensor]], None] | None = None
) -> Path:
    """A copy of a good export with its weights edited."""
    shutil.copytree(good, folder)
    if weights is not None:
        tensors = load_file(folder / "model.safetensors")
        weights(tensors)
        contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
        save_file(contiguous, folder / "model.safetensors", {"format": "pt"})
    return folder


def edit_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_good_export_passes(decoder: Decoder, good: Path) -> None:
    report = gate_on(decoder, good)
    assert report.failed == ()
    report.require()
    assert report.real_tokens >= 512 and report.random_tokens == 256
    assert {check.name for check in report.checks} == {
        "weights_round_trip", "special_ids", "loaded_tensors", "fp32_logits_text", "fp32_top1",
        "bf16_kl", "bf16_top1", "fp32_logits_random", "generation_cached",
        "generation_left_padded", "generation_batched",
    }  # fmt: skip
    # What an honest export needs is far from what it is allowed.
    assert number(report, "fp32_logits_text").value < number(report, "fp32_logits_text").bound / 5
    assert number(report, "bf16_kl").value > 0
    assert report.other_family_difference is not None and report.other_family_difference > 0.01


def test_an_untied_export_passes(tmp_path: Path) -> None:
    decoder = tiny_decoder(tied=False)
    folder = tmp_path / "mongolic"
    write_folder(decoder, "mongolic", folder, **IDS, max_positions=128, provenance={})
    assert gate_on(decoder, folder).failed == ()


def wrong_family(decoder: Decoder, good: Path, folder: Path) -> Path:
    return edited(good, folder, lambda t: t.update(dense_state_dict(decoder, "uralic")))


def last_expert_lost(decoder: Decoder, good: Path, folder: Path) -> Path:
    def lose(tensors: dict[str, Tensor]) -> None:
        tensors[f"model.layers.{LAST}.mlp.down_proj.weight"][:, 80:112] = 0

    return edited(good, folder, lose)


def gate_and_up_swapped(decoder: Decoder, good: Path, folder: Path) -> Path:
    def swap(tensors: dict[str, Tensor]) -> None:
        gate_name, up_name = (
            f"model.layers.{LAST}.mlp.{which}_proj.weight" for which in ("gate", "up")
        )
        gate_rows = tensors[gate_name][80:112].clone()
        tensors[gate_name][80:112] = tensors[up_name][80:112]
        tensors[up_name][80:112] = gate_rows

    return edited(good, folder, swap)


def wrong_eps(decoder: Decoder, good: Path, folder: Path) -> Path:
    edited(good, folder)
    edit_json(folder / "config.json", rms_norm_eps=1e-5)
    return folder


def unpermuted_rotary(decoder: Decoder, good: Path, folder: Path) -> Path:
    """Each head's rows in pairs (0, 1), (2, 3), … where Qwen3 wants (0, 8), (1, 9), …"""

    def interleave(tensors: dict[str, Tensor]) -> None:
        for name in tensors:
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                rows = tensors[name].view(-1, 2, 8, 64)
                tensors[name] = rows.transpose(1, 2).reshape(-1, 64)
            elif name.endswith(("q_norm.weight", "k_norm.weight")):
                tensors[name] = tensors[name].view(2, 8).T.reshape(16)

    return edited(good, folder, interleave)


@pytest.mark.parametrize(
    "control",
    [wrong_family, last_expert_lost, gate_and_up_swapped, wrong_eps, unpermuted_rotary],
)
def test_negative_control_fails(
    control: Callable[[Decoder, Path, Path], Path], decoder: Decoder, good: Path, tmp_path: Path
) -> None:
    report = gate_on(decoder, control(decoder, good, tmp_path / "bad"))
    for name in ("fp32_logits_text", "fp32_logits_random"):
        assert name in report.failed
        # Not by a hair: the bug is at least ten times what passes.
        assert number(report, name).value > 10 * number(report, name).bound
    # A wrong epsilon leaves the weights alone, so only the logits can see it.
    assert ("weights_round_trip" in report.failed) == (control is not wrong_eps)
    assert "loaded_tensors" not in report.failed and "special_ids" not in report.failed
    with pytest.raises(GateFailure, match="mongolic"):
        report.require()


def test_bug_in_a_nearly_uniform_model_fails_though_below_1e_4(tmp_path: Path) -> None:
    decoder = tiny_decoder(tied=False)
    with torch.no_grad():
        decoder.head.weight.mul_(1e-4)
    folder = tmp_path / "good" / "mongolic"
    write_folder(decoder, "mongolic", folder, **IDS, max_positions=128, provenance={})
    assert gate_on(decoder, folder).failed == ()
    report = gate_on(decoder, last_expert_lost(decoder, folder, tmp_path / "bad"))
    assert number(report, "fp32_logits_text").value < 1e-4
    assert "fp32_logits_text" in report.failed


def test_generation_that_is_not_greedy_decoding_of_the_model_fails(
    decoder: Decoder, good: Path, tmp_path: Path
) -> None:
    folder = edited(good, tmp_path / "bad")
    edit_json(folder / "generation_config.json", repetition_penalty=1.5)
    report = gate_on(decoder, folder)
    assert set(report.failed) == {
        "generation_cached", "generation_left_padded", "generation_batched"
    }  # fmt: skip


def test_attended_padding_fails_the_left_padded_check(
    decoder: Decoder, good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import Qwen3ForCausalLM

    honest = Qwen3ForCausalLM.generate

    def without_mask(self, attention_mask: Tensor, **rest):  # type: ignore[no-untyped-def]
        return honest(self, attention_mask=torch.ones_like(attention_mask), **rest)

    monkeypatch.setattr(Qwen3ForCausalLM, "generate", without_mask)
    assert gate_on(decoder, good).failed == ("generation_left_padded",)


def test_wrong_special_ids_fail(decoder: Decoder, good: Path, tmp_path: Path) -> None:
    folder = edited(good, tmp_path / "bad")
    edit_json(folder / "generation_config.json", eos_token_id=1)
    report = gate_on(decoder, folder)
    assert "special_ids" in report.failed and number(report, "special_ids").value == 1


def test_a_missing_tensor_fails(decoder: Decoder, good: Path, tmp_path: Path) -> None:
    def drop(tensors: dict[str, Tensor]) -> None:
        del tensors["model.layers.1.mlp.up_proj.weight"]

    report = gate_on(decoder, edited(good, tmp_path / "bad", drop))
    assert {"weights_round_trip", "loaded_tensors", "fp32_logits_text"} <= set(report.failed)


def test_one_flipped_bit_fails_the_round_trip(decoder: Decoder, good: Path, tmp_path: Path) -> None:
    def flip(tensors: dict[str, Tensor]) -> None:
        tensors["model.layers.1.mlp.up_proj.weight"].view(torch.int32)[3, 5] ^= 1

    report = gate_on(decoder, edited(good, tmp_path / "bad", flip))
    assert report.failed == ("weights_round_trip",)
    assert number(report, "weights_round_trip").value == 1


def test_too_few_real_tokens_are_refused(decoder: Decoder, good: Path) -> None:
    with pytest.raises(ModelError, match=r"family mongolic got \d+ real tokens; it needs 512"):
        run_gate(decoder, "mongolic", good, real_documents(3), **IDS)


def test_unknown_family_is_refused(decoder: Decoder, good: Path) -> None:
    with pytest.raises(ModelError, match="'turkic' is not in this model; it has celtic"):
        run_gate(decoder, "turkic", good, real_documents(), **IDS)


def test_failure_names_check_number_and_bound() -> None:
    check = Check(name="fp32_logits_text", meaning="max", value=0.031, bound=1e-4)
    report = GateReport(
        family="uralic", real_tokens=512, random_tokens=2, spread=1.0,
        other_family_difference=None, checks=(check,),
    )  # fmt: skip
    with pytest.raises(GateFailure, match=r"uralic.*fp32_logits_text is 0\.031, at most 0\.0001"):
        report.require()


def test_nan_never_passes_and_gate_json_stays_json() -> None:
    for at_least in (False, True):
        check = Check(name="x", meaning="", value=float("nan"), bound=1.0, at_least=at_least)
        assert not check.passed
    report = GateReport(
        family="uralic", real_tokens=1, random_tokens=1, spread=1.0,
        other_family_difference=None, checks=(check,),
    )  # fmt: skip
    written = json.dumps(report.to_json(), allow_nan=False)
    assert json.loads(written)["passed"] is False


def test_nan_logits_fail(decoder: Decoder, good: Path, tmp_path: Path) -> None:
    def poison(tensors: dict[str, Tensor]) -> None:
        tensors["model.embed_tokens.weight"][300:] = torch.nan

    report = gate_on(decoder, edited(good, tmp_path / "bad", poison))
    assert "fp32_logits_random" in report.failed


@pytest.mark.parametrize(
    ("kl_export", "kl_native", "standard_error", "passes"),
    [
        (1.09e-4, 1e-4, 0.0, True),
        (1.11e-4, 1e-4, 0.0, False),
        (1.11e-4, 1e-4, 1e-6, True),
        (1.13e-4, 1e-4, 1e-6, False),
        (9e-8, 1e-9, 0.0, True),
        (3e-7, 1e-9, 0.0, False),
    ],
)
def test_bf16_noise_is_held_to_the_native_noise(
    kl_export: float, kl_native: float, standard_error: float, passes: bool
) -> None:
    checks = bf16_checks(
        kl_export=kl_export,
        kl_native=kl_native,
        standard_error=standard_error,
        top1_export=0.98,
        top1_native=0.99,
    )
    assert [check.passed for check in checks] == [passes, True]


def test_bf16_top1_far_below_native_fails() -> None:
    checks = bf16_checks(
        kl_export=0.0, kl_native=0.0, standard_error=0.0, top1_export=0.9, top1_native=0.99
    )
    assert [check.passed for check in checks] == [True, False]


def test_extra_bf16_noise_fails(
    decoder: Decoder, good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = gate._load

    def noisy(folder: Path, dtype: torch.dtype):  # type: ignore[no-untyped-def]
        model, unmatched = honest(folder, dtype)
        if dtype == torch.bfloat16:
            for parameter in model.parameters():
                parameter.data = parameter.to(torch.float8_e4m3fn).to(torch.bfloat16)
        return model, unmatched

    monkeypatch.setattr(gate, "_load", noisy)
    assert "bf16_kl" in gate_on(decoder, good).failed
