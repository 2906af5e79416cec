"""A SentencePiece model file from a list of pieces, as SentencePiece's trainer would write it.

SentencePiece's encoder starts from characters and merges the two neighbours whose text is the
piece with the highest score, the leftmost of equals; so pieces whose scores fall in the order they
were learnt in are all that it needs. Read next: `bpe.py` (which pieces), `tokenizer.py`.
"""

from collections.abc import Sequence
from typing import Any

from sentencepiece import sentencepiece_model_pb2

BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
"""The pieces of the bytes, into which SentencePiece cuts a character without a piece."""
_PROTOBUF: Any = sentencepiece_model_pb2  # its classes are made when it is imported


def model_file(
    merged: Sequence[str], characters: Sequence[str], *, specials: Sequence[str], longest: int
) -> bytes:
    """A model file's bytes: specials, 256 bytes, merged pieces by rank, single characters.

    Args:
        merged: pieces of two characters or more, the first learnt first.
        characters: pieces of one character.
        specials: pad, unk, bos and eos, whose ids are 0 to 3.
        longest: characters of the longest piece.
    """
    model = _PROTOBUF.ModelProto()
    kinds = _PROTOBUF.ModelProto.SentencePiece
    for piece in specials:
        unknown = piece == specials[1]
        model.pieces.add(piece=piece, score=0, type=kinds.UNKNOWN if unknown else kinds.CONTROL)
    for piece in BYTES:
        model.pieces.add(piece=piece, score=0, type=kinds.BYTE)
    for rank, piece in enumerate((*merged, *characters)):
        model.pieces.add(piece=piece, score=-rank, type=kinds.NORMAL)
    trainer = model.trainer_spec
    trainer.model_type = _PROTOBUF.TrainerSpec.BPE
    trainer.vocab_size = len(model.pieces)
    trainer.byte_fallback = True
    trainer.split_digits = True
    trainer.allow_whitespace_only_pieces = True
    trainer.character_coverage = 1.0
    trainer.max_sentencepiece_length = longest
    pad, unk, bos, eos = range(4)
    trainer.pad_id, trainer.unk_id, trainer.bos_id, trainer.eos_id = pad, unk, bos, eos
    trainer.pad_piece, trainer.unk_piece, trainer.bos_piece, trainer.eos_piece = specials
    normalizer = model.normalizer_spec
    normalizer.name = "identity"
    normalizer.add_dummy_prefix = False
    normalizer.remove_extra_whitespaces = False
    normalizer.escape_whitespaces = True
    written: bytes = model.SerializeToString(deterministic=True)
    return written
