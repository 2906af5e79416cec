"""How far apart two languages are routed: entropy, Jensen-Shannon divergence, routing divergence.

A layer's routing of a sentence is q, the mean over its tokens of the router's full softmax; the
routing divergence of a language from a pivot is D_HJS of the two, averaged over parallel sentences
(Bandarkar et al. 2025, arXiv 2510.04694). Natural logarithms, so entropies are nats.
Shapes: E experts; all else broadcasts. Read next: `routers.py`, whose statistics hold q.
"""

import torch
from torch import Tensor

TINY = 1e-10
"""Below this a denominator is rounding: both distributions are uniform."""


def entropy(p_E: Tensor) -> Tensor:
    """H(p) = -sum_e p_e log p_e, nats, over the last dimension."""
    return torch.special.entr(p_E).sum(-1)


def jensen_shannon(p_E: Tensor, q_E: Tensor) -> Tensor:
    """JSD(p, q) = H((p + q) / 2) - (H(p) + H(q)) / 2, nats: from 0 (equal) to log 2 (disjoint)."""
    mixed = entropy((p_E + q_E) / 2) - (entropy(p_E) + entropy(q_E)) / 2
    return mixed.clamp_min(0.0)


def routing_divergence(p_E: Tensor, q_E: Tensor) -> Tensor:
    """D_HJS(p, q) = JSD(p, q) / (log E - (H(p) + H(q)) / 2): JSD over the most it could be.

    0 where they are equal; 1 where they differ and their mean is uniform, as two halves of the
    experts are. Two distinct experts alone give log 2 / log E, since their mean leaves the others
    unused.

    Args:
        p_E, q_E: not negative; they need not sum to 1, but must have a positive sum.
    Returns:
        float64, without the last dimension.
    """
    p_E, q_E = _normalised(p_E), _normalised(q_E)
    uniform = torch.log(torch.tensor(float(p_E.shape[-1]), dtype=p_E.dtype))
    most = uniform - (entropy(p_E) + entropy(q_E)) / 2
    divergence = jensen_shannon(p_E, q_E) / most.clamp_min(TINY)
    return torch.where(most > TINY, divergence, 0.0).clamp_max(1.0)


def _normalised(p_E: Tensor) -> Tensor:
    p_E = p_E.double()  # near-uniform routers differ in the last digits of float32
    return p_E / p_E.sum(-1, keepdim=True)
