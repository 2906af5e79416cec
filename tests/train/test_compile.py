"""engine.compile: losses as without it, canonical names, and one line where nothing can compile."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from xylem.train.checkpoint import latest_checkpoint
from xylem.train.compose import compose_config
from xylem.train.engines import compiling
from xylem.train.engines.compiling import check_compiler, compile_dense, dense_parts
from xylem.train.errors import UserError
from xylem.train.loop import pretrain

from ..conftest import Prepared, run_settings, train_losses

compiles = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++"))), reason="torch.compile needs a C++ compiler"
)


def names_saved(run: Path) -> set[str]:
    folder = latest_checkpoint(run)
    assert folder is not None
    names = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            names |= set(file.keys())
    return names


@compiles
def test_a_compiled_run_has_the_losses_and_the_names_of_a_plain_one(
    prepared: Prepared, tmp_path: Path
) -> None:
    for name, more in (("plain", ()), ("compiled", ("engine.compile=true", "engine.recompute=2"))):
        settings = run_settings(prepared, tmp_path, name, "model=tiny_prior", "run.steps=2")
        plan = "model.layer_plan=[{trunk_width: 40, expert_width: 8, router: prior}]"
        small = ("model.hidden_size=32", "model.heads=2", "model.head_dim=16", "model.kv_heads=1")
        pretrain(compose_config([*settings, *small, plan, *more]))
    compiled, plain = tmp_path / "compiled", tmp_path / "plain"
    assert train_losses(compiled) == pytest.approx(train_losses(plain), rel=1e-5)
    assert names_saved(compiled) == names_saved(plain)


def test_what_is_compiled_is_what_every_token_goes_through(
    monkeypatch: pytest.MonkeyPatch, prepared: Prepared
) -> None:
    from xylem.model.decoder import build_decoder

    called = []

    def compile_(forward: object) -> object:
        called.append(forward.__self__)  # type: ignore[attr-defined]
        return forward

    monkeypatch.setattr(torch, "compile", compile_)
    monkeypatch.setattr(compiling, "check_compiler", lambda device: None)
    config = compose_config([*prepared.settings, "model=tiny_topk"]).model
    decoder = build_decoder(config, ("alpha", "beta"), seed=0)
    before = list(decoder.state_dict())
    compile_dense(decoder, torch.device("cpu"))
    assert called == list(dense_parts(decoder)) and len(called) == 1 + 4 * len(config.layers)
    routed = {m for layer in decoder.layers for m in layer.feed_forward.experts.modules()}
    routed |= {m for layer in decoder.layers for m in (layer.feed_forward.router,) if m}
    assert not routed & set(called)
    assert list(decoder.state_dict()) == before


def test_a_machine_without_a_compiler_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UserError, match="engine.compile=true needs a C.. compiler .* set engine"):
        check_compiler(torch.device("cpu"))
