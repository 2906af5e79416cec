"""The decoder out of Megatron-core's parts, by module specs: the same function as `Decoder`.

Megatron brings attention's shared products, the residual layer, the embedding, recomputation and
what its schedules need; ours are the norm (which tells sequence parallelism to sum its gradient),
attention that never looks across documents and shares sequences by context, and the feed-forward
with its family experts, of another width in every layer.
Shapes: T positions, B sequences, D model, H query and G key heads, K head size; local ones are
those of this process. Read next: `weights.py`, what is where; `schedule.py`, which runs it.
"""

import importlib.util
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    gather_from_sequence_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from megatron.core.transformer import ModuleSpec, TransformerConfig
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_layer import (
    TransformerLayer,
    TransformerLayerSubmodules,
)
from torch import Tensor, nn

from ....model.collectives import context_positions
from ....model.config import LayerPlan, ModelConfig
from ....model.documents import document_starts
from ....model.layout import Layout
from ....model.swiglu import swiglu
from .attention import DocumentAttention, Norm, Prepared
from .config import MegatronConfig


def transformer_config(
    model: ModelConfig, layout: Layout, settings: MegatronConfig, *,
    stages: Sequence[Sequence[int]], dtype: torch.dtype, recompute: int = 0, on_gpu: bool = True,
) -> TransformerConfig:  # fmt: skip
    """Megatron's settings of a model in a layout.

    Args:
        stages: layer numbers of each piece of the pipeline, pipeline x virtual of them.
        recompute: 1 recomputes every layer in the backward pass.
        on_gpu: whether streams order what is sent and what is freed.
    """
    pieces = [["decoder"] * len(stage) for stage in stages]
    pieces[0].insert(0, "embedding")
    pieces[-1].append("loss")
    more: dict[str, Any] = {}
    # With two stages the next is the one before: messages both ways would be taken for another.
    overlap = settings.overlap_p2p_comm or (layout.virtual > 1 and layout.pipeline == 2)
    if layout.pipeline > 1:
        more = {"pipeline_model_parallel_layout": pieces}
    if layout.virtual > 1:
        more["virtual_pipeline_model_parallel_size"] = layout.virtual
    if recompute:
        more |= {"recompute_granularity": "full", "recompute_method": "uniform"}
        more["recompute_num_layers"] = recompute
    return TransformerConfig(
        num_layers=len(model.layers),
        hidden_size=model.hidden_size,
        num_attention_heads=model.heads,
        num_query_groups=model.kv_heads,
        kv_channels=model.head_dim,
        ffn_hidden_size=model.layers[0].trunk_width,  # each layer's own stands in its spec
        normalization="RMSNorm",
        layernorm_epsilon=model.norm_eps,
        qk_layernorm=True,
        gated_linear_unit=True,
        activation_func=F.silu,
        add_bias_linear=False,
        attention_dropout=0.0,
        hidden_dropout=0.0,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        use_cpu_initialization=True,
        perform_initialization=False,  # `weights.py` fills every parameter
        tensor_model_parallel_size=layout.tensor,
        sequence_parallel=layout.tensor > 1,
        context_parallel_size=layout.context,
        pipeline_model_parallel_size=layout.pipeline,
        # Losses come divided by the global batch's tokens: nothing is averaged after them.
        calculate_per_token_loss=True,
        overlap_p2p_comm=overlap,
        batch_p2p_comm=not overlap,
        deallocate_pipeline_outputs=settings.deallocate_pipeline_outputs and on_gpu,
        tp_comm_overlap=settings.tp_comm_overlap,
        gradient_accumulation_fusion=settings.gradient_accumulation_fusion,
        bias_dropout_fusion=False,
        **more,
    )


class SharedSwiGLU(nn.Module):
    """A SwiGLU whose hidden units are shared by the tensor ranks, without communication."""

    def __init__(self, config: TransformerConfig, width: int) -> None:
        super().__init__()
        shared: dict[str, Any] = {
            "config": config, "init_method": config.init_method, "bias": False,
            "skip_bias_add": True,
        }  # fmt: skip
        D = config.hidden_size
        self.gate_up = ColumnParallelLinear(D, 2 * width, gather_output=False, **shared)
        self.down = RowParallelLinear(width, D, input_is_parallel=True, **shared)
        # The feed-forward gathers once for all its SwiGLU, and sums once.
        self.gate_up.explicit_expert_comm = self.down.explicit_expert_comm = True

    def forward(self, x_TBD: Tensor) -> Tensor:
        """The part of the sum that this process's hidden units make."""
        return cast(Tensor, self.down(swiglu(self.gate_up(x_TBD)[0]))[0])


class FamilyFeedForward(nn.Module):
    """A layer's trunk, and beside it the experts of the rows' families."""

    def __init__(
        self, config: TransformerConfig, *, plan: LayerPlan, families: Sequence[str],
        run_all: bool = False, **_: Any,
    ) -> None:  # fmt: skip
        """
        Args:
            run_all: run every expert, on no rows where it has none. Communication that overlaps
                with computation waits for every parameter, and follows the order in which they
                are used: it must be the same on ranks that read different families.
        """
        super().__init__()
        self.families, self.run_all = tuple(families), run_all
        self.shared = config.sequence_parallel
        self.trunk = SharedSwiGLU(config, plan.trunk_width)
        width = plan.expert_width
        self.experts = nn.ModuleDict(
            {name: SharedSwiGLU(config, width) for name in families} if width else {}
        )

    def forward(self, x_TBD: Tensor, padding_mask: Tensor) -> tuple[Tensor, None]:
        """The block's output and no bias.

        Args:
            padding_mask: the index of each row's family, int64 [B] on the CPU: the one argument
                that Megatron hands to a feed-forward untouched.
        """
        if self.shared:
            x_TBD = gather_from_sequence_parallel_region(x_TBD)
        y_TBD = self.trunk(x_TBD)
        if self.experts:
            found, counts = padding_mask.unique_consecutive(return_counts=True)
            names = [self.families[index] for index in found.tolist()]
            pieces = dict(zip(names, x_TBD.split(counts.tolist(), dim=1), strict=True))
            run = self.families if self.run_all else names
            parts = {name: self.experts[name](pieces.get(name, x_TBD[:, :0])) for name in run}
            ordered = [parts[name] for name in dict.fromkeys((*names, *run))]
            y_TBD = y_TBD + (ordered[0] if len(ordered) == 1 else torch.cat(ordered, 1))
        if self.shared:
            y_TBD = reduce_scatter_to_sequence_parallel_region(y_TBD)
        return y_TBD, None


class FamilyGPT(GPTModel):
    """Megatron's GPT model that is told documents and families, and returns hidden states."""

    def forward(self, tokens_BT: Tensor, documents_BT: Tensor, families_B: Tensor) -> Tensor:
        """Hidden states [T local, B, D]; normed on the last stage.

        Args:
            tokens_BT, documents_BT: of whole sequences, as in `Decoder.forward`.
            families_B: index of each row's family, int64 on the CPU.
        """
        of, index = self.pg_collection.cp.size(), self.pg_collection.cp.rank()
        whole, device = tokens_BT.shape[1], tokens_BT.device
        places = context_positions(whole, index, of, device) if of > 1 else None
        hidden = None
        if self.pre_process:
            here_BT = tokens_BT if places is None else tokens_BT[:, places]
            hidden = self.embedding(input_ids=here_BT, position_ids=None)
        return cast(Tensor, self.decoder(
            hidden_states=hidden,
            attention_mask=document_starts(documents_BT),
            rotary_pos_emb=self.angles(whole, places, device),
            padding_mask=families_B,
        ))  # fmt: skip

    def angles(self, positions: int, places: Tensor | None, device: torch.device) -> Tensor:
        """Angles of rotary embeddings at this process's positions, float32 [T, 1, 1, K]."""
        K = self.config.kv_channels
        half = torch.arange(0, K, 2, device=device, dtype=torch.float32)
        at = torch.arange(positions, device=device, dtype=torch.float32)
        angles = torch.outer(
            at if places is None else at[places], 1 / self.rotary_base ** (half / K)
        )
        return torch.cat([angles, angles], -1)[:, None, None]

    def head_weight_VD(self) -> Tensor:
        """The head's rows that are here; the embedding's where they are tied."""
        if self.share_embeddings_and_output_weights:
            return cast(Tensor, self.shared_embedding_or_output_weight())
        return cast(Tensor, self.output_layer.weight)


def attention_linears(settings: MegatronConfig) -> tuple[type, type]:
    """Column and row parallel products of attention: Transformer Engine's where it is."""
    if settings.transformer_engine == "auto" and importlib.util.find_spec("transformer_engine"):
        from megatron.core.extensions.transformer_engine import (
            TEColumnParallelLinear,
            TERowParallelLinear,
        )

        return TEColumnParallelLinear, TERowParallelLinear
    return ColumnParallelLinear, RowParallelLinear


def family_feed_forward(
    plan: LayerPlan, families: Sequence[str], settings: MegatronConfig
) -> ModuleSpec:
    """The plan's trunk and experts."""
    named = {"plan": plan, "families": tuple(families), "run_all": settings.overlap_grad_reduce}
    return ModuleSpec(module=FamilyFeedForward, params=named)


def layer_spec(
    feed_forward: ModuleSpec, settings: MegatronConfig, backend: str, prepared: Prepared
) -> ModuleSpec:
    """One layer: attention and a feed-forward of its own.

    Args:
        prepared: what all layers share of a batch's documents.
    """
    column, row = attention_linears(settings)
    shared = {"backend": backend, "prepared": prepared}
    attends = ModuleSpec(module=DocumentAttention, params=shared)
    return ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=Norm,
            self_attention=ModuleSpec(
                module=SelfAttention,
                params={"attn_mask_type": AttnMaskType.causal},
                submodules=SelfAttentionSubmodules(
                    linear_qkv=column,
                    core_attention=attends,
                    linear_proj=row,
                    q_layernorm=Norm,
                    k_layernorm=Norm,
                ),
            ),
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=Norm,
            mlp=feed_forward,
            mlp_bda=get_bias_dropout_add,
        ),
    )


def build_chunks(
    config: TransformerConfig, model: ModelConfig, specs: Sequence[ModuleSpec],
    stages: Sequence[Sequence[int]], positions: int,
) -> list[FamilyGPT]:  # fmt: skip
    """This process's pieces of the decoder, without values.

    Args:
        specs: of every layer.
        stages: layer numbers of each piece of the pipeline.
        positions: of a whole sequence.
    """
    stage = parallel_state.get_pipeline_model_parallel_rank()
    size = config.pipeline_model_parallel_size
    chunks = []
    for number, piece in enumerate(range(stage, len(stages), size)):
        layers = [specs[n] for n in stages[piece]]
        chunks.append(FamilyGPT(
            config=config,
            transformer_layer_spec=TransformerBlockSubmodules(layer_specs=layers, layer_norm=Norm),
            vocab_size=model.vocab_size,
            max_sequence_length=positions,
            pre_process=piece == 0,
            post_process=piece == len(stages) - 1,
            share_embeddings_and_output_weights=model.tied_embeddings,
            position_embedding_type="none",
            rotary_base=cast(Any, model.rope_theta),
            vp_stage=number if len(stages) > size else None,
        ))  # fmt: skip
    return chunks
