"""Keeping experts' loads at their target: losses, a selection bias, quantile thresholds.

A target is a share of choices for every expert: uniform, or uniform inside a family and in
proportion to its tokens between families. What is moved without a gradient is moved once a step by
the counts of the global batch, so that it does not depend on how many processes counted.
Shapes: B sequences, T positions, N = B T tokens, E experts, K chosen, Q bins.
"""

import torch
from torch import Tensor

from .config import RoutingConfig

BINS = 4096
"""Bins of the histogram that quantiles are read from."""
SPAN = 16.0
"""They cover [-SPAN, SPAN) of logits; what lies beyond counts in the last bin of its side."""
_TINY = torch.finfo(torch.float32).tiny


def balance_losses(
    config: RoutingConfig,
    z_NE: Tensor,
    probabilities_BTE: Tensor,
    counts_BE: Tensor,
    load_E: Tensor,
    targets_BE: Tensor,
) -> Tensor:
    """The weighted sum of a router's losses over tokens; divide by the global batch's tokens.

    - within sequences (DeepSeek-V3, eq. 17): mean over sequences of sum_e f_e P_e / t_e, where f
      is the share of choices, P the mean probability and t the target, all among the experts that
      have a target, so that leaving them is neither rewarded nor punished (t = 1/E: E sum f P);
    - over the global batch: the same over all experts, with f / t of the step before (`load_E`), so
      that no process waits for another's counts;
    - z: mean of logsumexp(z)^2 (Zoph et al. 2022, eq. 5).

    Args:
        z_NE: logits that the choice is made by, float32.
        probabilities_BTE: their softmax.
        counts_BE: choices of each row.
        load_E: from `relative_load`; zeros in the first step.
        targets_BE: share of each row's choices wanted for each expert; rows sum to 1.
    """
    total = z_NE.new_zeros(())
    if config.sequence_loss:
        T = probabilities_BTE.shape[1]
        open_BE = targets_BE > 0
        inside_BTE = probabilities_BTE * open_BE[:, None]
        inside_BTE = inside_BTE / inside_BTE.sum(-1, keepdim=True).clamp_min(_TINY)
        counts_BE = counts_BE * open_BE
        share_BE = counts_BE / counts_BE.sum(-1, keepdim=True).clamp_min(1)
        ratio_BE = torch.where(open_BE, share_BE / targets_BE, 0.0)
        total = total + config.sequence_loss * T * (ratio_BE * inside_BTE.mean(1)).sum()
    if config.global_loss:
        total = total + config.global_loss * (probabilities_BTE * load_E).sum()
    if config.z_loss:
        total = total + config.z_loss * z_NE.logsumexp(-1).square().sum()
    return total


def relative_load(counts_E: Tensor, targets_E: Tensor) -> Tensor:
    """Choices over those wanted; 1, which moves nothing, where none are wanted.

    Args:
        counts_E: choices of the global batch, int64.
        targets_E: those wanted, float64.
    Returns:
        load_E, float32.
    """
    return torch.where(targets_E > 0, counts_E / targets_E, 1.0).float()


@torch.no_grad()
def move_bias(balance_E: Tensor, counts_E: Tensor, targets_E: Tensor, rate: float) -> None:
    """Auxiliary-loss-free balance (Wang et al. 2024): a step of `rate` towards the target.

    An expert that the step wants nothing of keeps its bias: a rare family would else be pushed down
    in all the steps that it is not in.

    Args:
        balance_E: what is taken off the logits for the choice; changed in place.
        counts_E: choices of the global batch.
        targets_E: those wanted; their sum is that of the counts.
    """
    excess_E = torch.sign(counts_E - targets_E) * (targets_E > 0)
    balance_E += (rate * excess_E).to(balance_E.dtype)


def quantile_counts(z_NE: Tensor, wanted_NE: Tensor, top_k: int) -> Tensor:
    """What quantile balancing reads its thresholds from: by how much each logit beats its rivals.

    Args:
        z_NE: logits.
        wanted_NE: logits less the present thresholds, z - beta.
        top_k: K.
    Returns:
        histogram_EQ of z_e - alpha over the tokens, alpha the (K+1)-th largest of z - beta; int64.
    """
    E = z_NE.shape[-1]
    alpha_N1 = wanted_NE.topk(min(top_k + 1, E), dim=-1).values[:, -1:]
    beats_NE = (z_NE - alpha_N1).nan_to_num(0.0)
    bins_NE = ((beats_NE + SPAN) * (BINS / (2 * SPAN))).floor().clamp(0, BINS - 1).long()
    experts_E = torch.arange(E, device=z_NE.device)
    return torch.bincount((experts_E * BINS + bins_NE).flatten(), minlength=E * BINS).view(E, BINS)


@torch.no_grad()
def move_quantile(balance_E: Tensor, histogram_EQ: Tensor, targets_E: Tensor, decay: float) -> None:
    """Quantile balancing: each threshold becomes what lets the wanted number of tokens pass.

    beta_e is the (target + 1)-th largest of z_e - alpha (Megatron-Core's rule), read from the
    histogram of the global batch to a bin's width, and averaged over steps. An expert that the
    step wants nothing of keeps its threshold.

    Args:
        balance_E: the thresholds beta; changed in place.
        histogram_EQ: `quantile_counts`, summed over the global batch.
        targets_E: how many choices each expert should get.
        decay: weight of the thresholds so far.
    """
    above_EQ = histogram_EQ.flip(-1).cumsum(-1).flip(-1)
    passing_E = (above_EQ > targets_E[:, None]).sum(-1)
    edges_E = (passing_E.to(balance_E.dtype) - 0.5) * (2 * SPAN / BINS) - SPAN
    balance_E.lerp_(torch.where(targets_E > 0, edges_E, balance_E), 1 - decay)
