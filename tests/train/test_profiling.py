"""debug=profile: a trace and a table in the run folder, and a run that is none the worse for it."""

import gzip
import json
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity

from xylem.model.config import LayerPlan, ModelConfig
from xylem.model.decoder import Decoder, build_decoder
from xylem.model.objectives import next_token_loss
from xylem.model.routers import FamilySegment
from xylem.train.compose import compose_config
from xylem.train.errors import UserError
from xylem.train.loop import pretrain
from xylem.train.optimizer import OptimConfig, Optimizers
from xylem.train.profiling import OTHER, Times, export_trace, mark_parts, part, read_times

from ..conftest import Prepared, run_settings, train_losses

SEGMENTS = (FamilySegment("alpha", 0, 1), FamilySegment("beta", 1, 2))


def small_decoder(router: str) -> Decoder:
    plan = LayerPlan(repeat=2, trunk_width=40, expert_width=24, router=router)  # type: ignore[arg-type]
    config = ModelConfig(
        vocab_size=50, hidden_size=32, heads=4, kv_heads=2, head_dim=8, layer_plan=(plan,)
    )
    return build_decoder(config, ("alpha", "beta"), seed=0)


def traced(decoder: Decoder) -> Times:
    """A step of a decoder under the profiler."""
    optimizers = Optimizers(decoder, OptimConfig(warmup_steps=0), 10)
    tokens = torch.arange(48).view(2, 24)
    handles = list(mark_parts(decoder))
    with torch.profiler.profile(activities=[ProfilerActivity.CPU]) as tracer:
        hidden = decoder(tokens, torch.zeros_like(tokens), SEGMENTS)
        with part("loss"):
            loss = next_token_loss(hidden, decoder.head_weight_VD, tokens)[0]
        loss.backward()
        optimizers.step(0)
    for handle in handles:
        handle.remove()
    return read_times(tracer.events(), 1.0, torch.device("cpu"))  # type: ignore[arg-type]


def test_a_profiled_run_writes_trace_and_table_and_goes_on(
    prepared: Prepared, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, more in (("plain", ()), ("profiled", ("debug=profile", "debug.profile=2"))):
        settings = run_settings(prepared, tmp_path, name, "run.steps=6")
        plan = "model.layer_plan=[{trunk_width: 40, expert_width: 8, router: prior}]"
        pretrain(compose_config([*settings, plan, *more]))
    run = tmp_path / "profiled"
    assert train_losses(run) == train_losses(tmp_path / "plain")
    table = (run / "profile" / "time.txt").read_text()
    for name in ("attention", "trunk", "experts", "router", "norms", "loss", "optimizer",
                 "data wait", OTHER, "aten::mm", "2 steps of"):  # fmt: skip
        assert name in table, name
    with gzip.open(run / "profile" / "trace.json.gz") as file:
        named = {event.get("name") for event in json.load(file)["traceEvents"]}
    assert {"xylem: attention", "xylem: experts"} <= named
    said = capsys.readouterr().out
    assert "profiled 2 steps" in said and str(run / "profile" / "trace.json.gz") in said
    assert not (tmp_path / "plain" / "profile").exists()


@pytest.mark.parametrize("recompute", [0, 1])
def test_the_backward_pass_belongs_to_the_parts_of_the_forward_pass(recompute: int) -> None:
    decoder = small_decoder("topk")
    decoder.recompute = recompute
    times = traced(decoder)
    for name in ("attention", "trunk", "experts", "router", "norms", "loss", "embedding"):
        assert times.forward[name] > 0 and times.backward[name] > 0, name
    assert times.forward["optimizer"] > 0 and not times.backward.get("optimizer")
    # What no part claims is small: gradients of parameters are only handed over.
    assert times.backward[OTHER] < 0.5 * sum(times.backward.values())


def test_family_experts_are_seen_and_need_no_router() -> None:
    times = traced(small_decoder("family"))
    assert times.forward["experts"] > 0 and times.backward["experts"] > 0
    assert "router" not in times.forward and "router" not in times.backward
    assert times.operators["aten::mm"][0] > 0


def test_a_run_too_short_says_that_nothing_is_profiled(
    prepared: Prepared, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = run_settings(prepared, tmp_path, "run", "run.steps=4", "debug=profile")
    pretrain(compose_config(settings))
    assert "debug.profile=3 needs 6 steps, and 4 are left" in capsys.readouterr().out
    assert not (tmp_path / "run" / "profile").exists()


@pytest.mark.parametrize("left", [b"", gzip.compress(b"", mtime=0)], ids=["empty", "no text"])
def test_a_trace_that_was_not_written_is_an_error_and_leaves_no_file(
    left: bytes, tmp_path: Path
) -> None:
    """PyTorch reports no error where it runs out of room."""

    class Tracer:
        def export_chrome_trace(self, path: str) -> None:
            Path(path).write_bytes(left)

    with pytest.raises(OSError, match=r"trace\.json\.gz: the disk or the limit"):
        export_trace(Tracer(), tmp_path / "trace.json.gz")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_a_profile_that_cannot_be_written_ends_no_run(
    prepared: Prepared, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "profile").write_text("in the way")
    pretrain(
        compose_config(run_settings(prepared, tmp_path, "run", "run.steps=6", "debug=profile"))
    )
    assert "the profile could not be written" in capsys.readouterr().out
    assert len(train_losses(run)) == 6


def test_a_negative_number_of_steps_is_refused() -> None:
    with pytest.raises(UserError, match="debug.profile=-1 must be at least 0"):
        compose_config(["debug.profile=-1"])
