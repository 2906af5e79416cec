"""Which family a token's text belongs to: the tag where there is one, else a small head's guess.

The head reads what a document's tokens so far are, and nothing of later ones or of other documents.
It is trained beside the model and moves nothing but itself.
Shapes: B sequences, T positions, D model, F families. Read next: `routers.py`, which adds
log pi(family) to its logits.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .collectives import Sharing
from .documents import document_starts
from .noise import uniform


class FamilyHead(nn.Module):
    """log-probabilities of the families, from a document's tokens so far.

    Each token's normed embedding gives evidence for every family; the evidence of n tokens is their
    sum over sqrt(n), which grows with n as a signal does over its noise. A family's row bears its
    name, so that it comes and goes with the family's files.
    Processes that share a sequence exchange its evidence: a document may lie on several.
    """

    def __init__(
        self, hidden_size: int, families: Sequence[str], sharing: Sharing | None = None
    ) -> None:
        super().__init__()
        self.sharing = Sharing() if sharing is None else sharing
        self.families = tuple(families)
        self.rows = nn.ParameterDict({name: torch.empty(hidden_size) for name in families})

    def forward(self, x_BTD: Tensor, documents_BT: Tensor) -> Tensor:
        """
        Args:
            x_BTD: the tokens' embeddings, at this process's stretch of the positions; no gradient
                reaches them.
            documents_BT: the number of each position's document in its sequence, of whole
                sequences.
        Returns:
            guess_BTF, float32, at this process's positions by context.
        """
        with torch.autocast(x_BTD.device.type, enabled=False):
            x_BTD = F.rms_norm(x_BTD.detach().float(), x_BTD.shape[-1:])
            rows_FD = torch.stack([self.rows[name] for name in self.families]).float()
            evidence_BTF = self.sharing.in_order(F.linear(x_BTD, rows_FD))
            sums_BTF, tokens_BT = document_sums(evidence_BTF, documents_BT)
            scaled_BTF = sums_BTF * tokens_BT[..., None].rsqrt()
            return self.sharing.here(scaled_BTF).log_softmax(-1)


def document_sums(x_BTC: Tensor, documents_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over each position's document up to and including it, and how many positions they hold.

    Partial sums are doubled in reach and never cross a border, so that another document changes not
    even a rounding, and a document's place in its sequence does not matter.

    Returns:
        sums_BTC, and tokens_BT in x's dtype.
    """
    T = x_BTC.shape[1]
    places_T = torch.arange(T, device=x_BTC.device)
    first_BT = document_starts(documents_BT)
    sums_BTC, reach = x_BTC, 1
    while reach < T:
        inside_BT = places_T - reach >= first_BT
        before_BTC = F.pad(sums_BTC, (0, 0, reach, -reach))
        sums_BTC = sums_BTC + torch.where(inside_BT[..., None], before_BTC, 0.0)
        reach *= 2
    return sums_BTC, (places_T - first_BT + 1).to(x_BTC.dtype)


def shown_tags(families_B: Tensor, keys_B: Tensor | None, dropout: float) -> Tensor:
    """Tag dropout: the families that the model is told, -1 for hidden ones.

    Args:
        families_B: index of each row's family; -1 for none.
        keys_B: random keys of the rows; without them nothing is hidden.
        dropout: share of rows whose tag is hidden.
    """
    if keys_B is None or not dropout:
        return families_B
    hidden_B = uniform(keys_B, "tag dropout", 1)[:, 0] < dropout
    return torch.where(hidden_B, -1, families_B)


def family_prior(shown_B: Tensor, guess_BTF: Tensor, smoothing: float) -> Tensor:
    """log pi(family) of each token: (1-s) of the tag or the guess, and s spread over all.

    Args:
        shown_B: index of the family that a row is tagged with; -1 for none.
        guess_BTF: the head's log-probabilities.
        smoothing: s.
    """
    families = guess_BTF.shape[-1]
    tag_BF = F.one_hot(shown_B.clamp_min(0), families).to(guess_BTF.dtype)
    share_BTF = torch.where((shown_B < 0)[:, None, None], guess_BTF.exp(), tag_BF[:, None])
    return ((1 - smoothing) * share_BTF + smoothing / families).log()


def family_loss(guess_BTF: Tensor, families_B: Tensor) -> tuple[Tensor, Tensor]:
    """How well the head names the families of tagged rows.

    Returns:
        The cross-entropy summed over their tokens, scalar; and the tokens right of each row,
        int64 [B].
    """
    tagged_B = families_B >= 0
    index_BT1 = families_B.clamp_min(0)[:, None, None].expand(*guess_BTF.shape[:2], 1)
    nll_BT = -guess_BTF.gather(-1, index_BT1)[..., 0]
    right_BT = (guess_BTF.argmax(-1) == families_B[:, None]) & tagged_B[:, None]
    return (nll_BT * tagged_B[:, None]).sum(), right_BT.sum(1)
