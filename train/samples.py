"""Text a model writes while it trains: one short continuation a family."""

from collections.abc import Sequence

import torch

from ..data.manifest import Manifest
from ..data.storage import Storage
from ..data.token_line import TokenLine
from ..data.tokenizer import Tokenizer
from ..model.decoder import Decoder
from ..model.routers import FamilySegment

PROMPT_TOKENS = 8


@torch.no_grad()
def generate(
    decoder: Decoder, family: str, prompt: Sequence[int], tokens: int, *, eos_id: int, seed: int
) -> list[int]:
    """Continues a prompt by sampling at temperature 0.8; no cache, for short texts.

    Args:
        prompt: token ids, the begin token first.
        tokens: at most so many new ones; stops at the end token.
    Returns:
        The new ids.
    """
    device = decoder.head_weight_VD.device
    generator = torch.Generator().manual_seed(seed)
    ids = list(prompt)
    for _ in range(tokens):
        tokens_1T = torch.tensor([ids], device=device)
        logits = decoder.logits(
            tokens_1T, torch.zeros_like(tokens_1T), (FamilySegment(family, 0, 1),)
        )
        shares = (logits[0, -1].float().cpu() / 0.8).softmax(-1)
        picked = int(torch.multinomial(shares, 1, generator=generator))
        if picked == eos_id:
            break
        ids.append(picked)
    return ids[len(prompt) :]


def family_samples(
    decoder: Decoder,
    storage: Storage,
    manifest: Manifest,
    tokenizer: Tokenizer,
    *,
    tokens: int,
    seed: int,
) -> list[dict[str, str]]:
    """One sample a family, from the beginning of a held-out document of its largest language."""
    samples = []
    for family in manifest.families:
        members = [
            e for e in manifest.languages.values() if e.family == family and e.heldout.documents
        ]
        if not members:
            continue
        entry = max(members, key=lambda e: (e.train_tokens, e.code))
        line = TokenLine(storage, entry.heldout)
        first = line.document_bounds()[:2]
        prompt = line.read(int(first[0]), min(int(first[1]) - 1, int(first[0]) + PROMPT_TOKENS))
        new = generate(decoder, family, prompt.tolist(), tokens, eos_id=tokenizer.eos_id, seed=seed)
        samples.append(
            {
                "family": family,
                "language": entry.code,
                "prompt": tokenizer.decode(prompt.tolist()[1:]),
                "text": tokenizer.decode(new),
            }
        )
    return samples
