"""Trunk and one family as a dense Qwen3: names, shapes, padding, and the way back."""

import errno
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xylem.model.config import LayerPlan, ModelConfig, RoutingConfig
from xylem.model.decoder import Decoder, build_decoder
from xylem.model.errors import ModelError
from xylem.model.hf import qwen3
from xylem.model.hf.qwen3 import (
    dense_config,
    dense_state_dict,
    family_state_dict,
    split_state_dict,
    staged_folder,
    unmasked,
    weights_sha256,
    write_folder,
)
from xylem.model.routers import FamilySegment

FAMILIES = ("celtic", "mongolic", "uralic")
IDS = {"bos_id": 2, "eos_id": 3, "pad_id": 0}
PLAN = (
    LayerPlan(trunk_width=24, expert_width=12),
    LayerPlan(repeat=2, trunk_width=32),
    LayerPlan(trunk_width=20, expert_width=8),
)


def tiny_config(
    plan: tuple[LayerPlan, ...] = PLAN, *, tied: bool = True, routing: RoutingConfig | None = None
) -> ModelConfig:
    return ModelConfig(
        routing=routing or RoutingConfig(),
        vocab_size=60,
        hidden_size=16,
        heads=4,
        kv_heads=2,
        head_dim=6,
        rope_theta=20_000.0,
        norm_eps=3e-6,
        tied_embeddings=tied,
        layer_plan=plan,
    )


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return build_decoder(tiny_config(), FAMILIES, seed=1)


def export(decoder: Decoder, folder: Path) -> None:
    write_folder(decoder, "uralic", folder, **IDS, max_positions=64, provenance={"step": 7})


@pytest.mark.parametrize("tied", [True, False])
def test_names_and_shapes_are_those_of_transformers_qwen3(tied: bool) -> None:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    decoder = build_decoder(tiny_config(tied=tied), FAMILIES, seed=1)
    fields = dense_config(decoder.config, **IDS, max_positions=64)
    with torch.device("meta"):
        theirs = Qwen3ForCausalLM(Qwen3Config(**fields)).state_dict()
    if tied:
        del theirs["lm_head.weight"]
    ours = dense_state_dict(decoder, "uralic")
    assert {n: t.shape for n, t in ours.items()} == {n: t.shape for n, t in theirs.items()}


def test_config_carries_what_the_decoder_computes_with(decoder: Decoder, tmp_path: Path) -> None:
    from transformers import AutoConfig

    export(decoder, tmp_path / "uralic")
    read = AutoConfig.from_pretrained(tmp_path / "uralic")
    assert read.architectures == ["Qwen3ForCausalLM"]
    assert read.rms_norm_eps == 3e-6
    assert read.rope_parameters["rope_theta"] == 20_000.0
    assert read.intermediate_size == 36
    assert (read.head_dim, read.num_key_value_heads, read.max_position_embeddings) == (6, 2, 64)
    assert (read.bos_token_id, read.eos_token_id, read.pad_token_id) == (2, 3, 0)
    assert read.xylem == {"family": "uralic", "step": 7}
    # transformers 4, and engines that follow it, look for the theta here.
    written = json.loads((tmp_path / "uralic" / "config.json").read_text())
    assert written["rope_theta"] == written["rope_parameters"]["rope_theta"] == 20_000.0


def test_narrower_layers_are_padded_with_zeros(decoder: Decoder) -> None:
    dense = dense_state_dict(decoder, "uralic")
    for layer, used in enumerate((36, 32, 32, 28)):
        gate, up, down = (
            dense[f"model.layers.{layer}.mlp.{name}_proj.weight"] for name in ("gate", "up", "down")
        )
        assert gate.shape == up.shape == (36, 16) and down.shape == (16, 36)
        for units in (gate, up, down.T):
            assert units[:used].count_nonzero() == used * 16
            assert units[used:].count_nonzero() == 0


@given(
    layers=st.lists(
        st.tuples(st.integers(1, 9), st.sampled_from([0, 0, 1, 5])), min_size=1, max_size=3
    ),
    tied=st.booleans(),
    family=st.sampled_from(FAMILIES),
)
@settings(max_examples=25, deadline=None)
def test_round_trip_is_bit_equal(layers: list[tuple[int, int]], tied: bool, family: str) -> None:
    plan = tuple(LayerPlan(trunk_width=trunk, expert_width=expert) for trunk, expert in layers)
    config = tiny_config(plan, tied=tied)
    decoder = build_decoder(config, FAMILIES, seed=3)
    back = split_state_dict(dense_state_dict(decoder, family), config, family)
    ours = family_state_dict(decoder, family)
    assert back.keys() == ours.keys()
    assert all(torch.equal(back[name], ours[name]) for name in ours)


def test_export_does_not_share_memory_with_the_decoder() -> None:
    decoder = build_decoder(tiny_config(), FAMILIES, seed=1)
    before = weights_sha256(family_state_dict(decoder, "uralic"))
    for tensor in dense_state_dict(decoder, "uralic").values():
        tensor.zero_()
    assert weights_sha256(family_state_dict(decoder, "uralic")) == before


def test_weights_sha256_sees_one_bit_and_one_name(decoder: Decoder) -> None:
    tensors = {n: t.clone() for n, t in family_state_dict(decoder, "uralic").items()}
    before = weights_sha256(tensors)
    assert weights_sha256(dict(reversed(tensors.items()))) == before
    tensors["embed.weight"].view(torch.int32)[0, 0] ^= 1
    assert weights_sha256(tensors) != before
    assert weights_sha256(family_state_dict(decoder, "celtic")) != before


def test_unknown_family_is_refused_with_the_known_ones(decoder: Decoder, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="'turkic' is not in this model; it has celtic, mongolic"):
        dense_state_dict(decoder, "turkic")
    with pytest.raises(ModelError, match="'turkic'"):
        write_folder(decoder, "turkic", tmp_path / "turkic", **IDS, max_positions=8, provenance={})
    assert list(tmp_path.iterdir()) == []


def test_split_refuses_a_missing_tensor(decoder: Decoder) -> None:
    dense = dense_state_dict(decoder, "uralic")
    del dense["model.layers.1.self_attn.k_proj.weight"]
    with pytest.raises(ModelError, match=r"lacks model\.layers\.1\.self_attn\.k_proj\.weight"):
        split_state_dict(dense, decoder.config, "uralic")


def test_split_refuses_an_unknown_tensor(decoder: Decoder) -> None:
    dense = dense_state_dict(decoder, "uralic")
    dense["model.layers.9.bias"] = torch.zeros(1)
    with pytest.raises(ModelError, match=r"holds model\.layers\.9\.bias"):
        split_state_dict(dense, decoder.config, "uralic")


def test_split_refuses_another_shape(decoder: Decoder) -> None:
    dense = dense_state_dict(decoder, "uralic")
    dense["model.norm.weight"] = torch.ones(17)
    with pytest.raises(ModelError, match=r"model\.norm\.weight is \[17\], this model needs \[16\]"):
        split_state_dict(dense, decoder.config, "uralic")


@pytest.mark.parametrize("name", ["gate", "up", "down"])
def test_split_refuses_padding_that_is_not_zero(decoder: Decoder, name: str) -> None:
    dense = dense_state_dict(decoder, "uralic")
    dense[f"model.layers.1.mlp.{name}_proj.weight"][-1, -1] = 1e-8
    with pytest.raises(ModelError, match=rf"layers\.1\.mlp\.{name}_proj is not zero beyond .* 32"):
        split_state_dict(dense, decoder.config, "uralic")


def test_an_earlier_export_is_replaced(decoder: Decoder, tmp_path: Path) -> None:
    folder = tmp_path / "uralic"
    export(decoder, folder)
    (folder / "stale").write_text("")
    export(decoder, folder)
    assert not (folder / "stale").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["uralic"]


def test_a_folder_that_is_no_export_is_refused(decoder: Decoder, tmp_path: Path) -> None:
    folder = tmp_path / "uralic"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "qwen3"}')
    with pytest.raises(ModelError, match="is no export of Xylem: choose another folder"):
        export(decoder, folder)
    assert (folder / "config.json").read_text() == '{"model_type": "qwen3"}'


def test_a_file_in_the_way_is_refused(decoder: Decoder, tmp_path: Path) -> None:
    (tmp_path / "uralic").write_text("thesis")
    with pytest.raises(ModelError, match="is no export of Xylem"):
        export(decoder, tmp_path / "uralic")
    assert (tmp_path / "uralic").read_text() == "thesis"


def test_an_empty_folder_is_filled(decoder: Decoder, tmp_path: Path) -> None:
    (tmp_path / "uralic").mkdir()
    export(decoder, tmp_path / "uralic")
    assert qwen3.is_export(tmp_path / "uralic")


def test_a_full_disk_leaves_the_earlier_export_and_nothing_else(
    decoder: Decoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "uralic"
    export(decoder, folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(qwen3, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        export(decoder, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["uralic"]


def test_a_killed_exports_leftovers_are_not_taken_for_an_export(
    decoder: Decoder, tmp_path: Path
) -> None:
    leftover = tmp_path / "uralic.xylem-partial"
    leftover.mkdir()
    (leftover / "half").write_text("")
    with staged_folder(tmp_path / "uralic") as staging:
        assert list(staging.iterdir()) == []
        assert not (tmp_path / "uralic").exists()
        (staging / "whole").write_text("")
    assert [path.name for path in tmp_path.iterdir()] == ["uralic"]
    assert (tmp_path / "uralic" / "whole").exists()


@pytest.mark.parametrize(
    ("masking", "left"),
    [({"expert_masking": 0.25}, 0.75), ({"expert_masking": 0.2, "output_masking": 0.5}, 0.4)],
)
def test_what_masking_leaves_in_evaluation_is_folded_into_the_experts(
    masking: dict[str, float], left: float
) -> None:
    config = tiny_config(routing=RoutingConfig(**masking))  # type: ignore[arg-type]
    masked = build_decoder(config, FAMILIES, seed=1)
    ours = family_state_dict(masked, "uralic")
    folded = Decoder(unmasked(config), ["uralic"])
    folded.load_state_dict(ours)
    tokens = torch.randint(0, 60, (2, 9), generator=torch.Generator().manual_seed(0))
    segments = (FamilySegment("uralic", 0, 2),)
    documents = torch.zeros_like(tokens)
    expected = masked.logits(tokens, documents, segments)
    torch.testing.assert_close(folded.logits(tokens, documents, segments), expected)
    plain = build_decoder(tiny_config(), FAMILIES, seed=1)
    difference = (plain.logits(tokens, documents, segments) - expected).abs().max()
    assert difference > 1e-4  # unfolded, the export would be another model
    down = "layers.0.feed_forward.experts.uralic.down.weight"
    torch.testing.assert_close(ours[down], left * masked.state_dict()[down])
    back = split_state_dict(dense_state_dict(masked, "uralic"), config, "uralic")
    assert all(torch.equal(back[name], ours[name]) for name in ours)


@pytest.mark.parametrize("router", ["prior", "topk", "hybrid", "hybrid_published", "domain"])
def test_a_model_that_routes_by_token_is_not_exported(router: str, tmp_path: Path) -> None:
    plan = (*PLAN[:3], LayerPlan(trunk_width=20, expert_width=8, router=router))  # type: ignore[arg-type]
    decoder = build_decoder(tiny_config(plan), FAMILIES, seed=1)
    for refused in (dense_state_dict, family_state_dict):
        with pytest.raises(ModelError, match=f"layer 4 has router={router}, which chooses") as told:
            refused(decoder, "uralic")
        assert "\n" not in str(told.value)
    with pytest.raises(ModelError, match="layer 4 has router="):
        export(decoder, tmp_path / "uralic")
    assert list(tmp_path.iterdir()) == []


def test_a_model_with_a_gate_is_not_exported() -> None:
    config = tiny_config(routing=RoutingConfig(gate=True))
    decoder = build_decoder(config, FAMILIES, seed=1)
    with pytest.raises(ModelError, match=r"layer 0 has model\.routing\.gate=true"):
        dense_state_dict(decoder, "uralic")
