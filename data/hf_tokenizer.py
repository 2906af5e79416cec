"""The tokenizer as a Hugging Face fast tokenizer, with the same ids for every text.

SentencePiece merges the pair whose merged piece came first, the leftmost of equals, however the
piece is made up; Hugging Face ranks each pair. The ranks written here give the same merges: pairs
are ordered by their piece, and the pairs of one piece so that the leftmost of two overlapping ones
wins. Read next: `tokenizer.py`.
"""

import json
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, processors

from .shards import write_atomically
from .tokenizer import SPECIAL_PIECES, Tokenizer

NO_LIMIT = 10**9
"""A length that no text has: the model's own limit is given by whoever exports a model."""


def export_hf_tokenizer(
    tokenizer: Tokenizer, folder: Path, *, model_max_length: int = NO_LIMIT
) -> None:
    """Writes `tokenizer.json`, `tokenizer_config.json`, `special_tokens_map.json`.

    `AutoTokenizer.from_pretrained(folder)(text).input_ids` is then bos and `encode(text)`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pad, unk, bos, eos = SPECIAL_PIECES
    special = {"bos_token": bos, "eos_token": eos, "unk_token": unk, "pad_token": pad}
    settings = special | {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": model_max_length,
        "clean_up_tokenization_spaces": False,
        "padding_side": "right",
        "split_special_tokens": True,  # "<s>" in a text (HTML's strike-out) is text, not a token
        "model_input_names": ["input_ids", "attention_mask"],
    }
    write_atomically(
        folder / "tokenizer.json", hf_tokenizer(tokenizer).to_str(pretty=True).encode()
    )
    write_atomically(folder / "tokenizer_config.json", _json(settings))
    write_atomically(folder / "special_tokens_map.json", _json(special))


def hf_tokenizer(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    """The same tokenizer as an object of the `tokenizers` library, which puts bos in front."""
    model = models.BPE(
        vocab={piece: token for token, piece in enumerate(tokenizer.pieces)},
        merges=_merges(tokenizer),
        unk_token=tokenizer.pieces[tokenizer.unk_id],
        byte_fallback=True,
        fuse_unk=False,
    )
    fast = tokenizers.Tokenizer(model)
    fast.normalizer = normalizers.Replace(" ", "\u2581")
    fast.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    fast.add_special_tokens(
        [AddedToken(piece, special=True, normalized=False) for piece in SPECIAL_PIECES]
    )
    bos = SPECIAL_PIECES[tokenizer.bos_id]
    fast.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A",
        pair=f"{bos} $A {bos}:1 $B:1",
        special_tokens=[(bos, tokenizer.bos_id)],
    )
    return fast


def _merges(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    pieces = [
        piece
        for token, piece in enumerate(tokenizer.pieces)
        if tokenizer.token_bytes[token] and not tokenizer.is_byte[token]
    ]
    known = set(pieces)
    merges: list[tuple[str, str]] = []
    for piece in pieces:  # in the order of their ids, which is the order they were learnt in
        cuts = [i for i in range(1, len(piece)) if piece[:i] in known and piece[i:] in known]
        # Two pairs of one piece overlap as a·b·c with ab = bc = piece, so that |a| is a period of
        # the piece: such a cut must win, as SentencePiece takes the leftmost pair. (A million
        # random strings showed no difference; it is what the argument for equal ids needs.)
        cuts.sort(key=lambda cut: (not piece.startswith(piece[cut:]), -cut))
        merges.extend((piece[:cut], piece[cut:]) for cut in cuts)
    return merges


def _json(value: dict[str, object] | dict[str, str]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
