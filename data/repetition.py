"""What is a repeated token worth? The effective data of a language that is read several times.

ATLAS (Longpre et al. 2025, arXiv 2510.22037) writes the data of its scaling law as
S(D; U) = D up to one epoch of U unique tokens, and U [1 + (1 - exp(-λ (D/U - 1))) / λ] beyond:
every further epoch is worth less, and all of them together no more than 1/λ epochs. Read next:
`mixture.py`, whose caps keep epochs few.
"""

import math

DECAY = 1 / 15.39
"""λ: the fit of Muennighoff et al. 2023 (arXiv 2305.16264), R* = 15.39, whose formula is the same.
ATLAS fits it per language; `effective_tokens` takes another."""


def effective_tokens(read: float, unique: float, decay: float = DECAY) -> float:
    """How many fresh tokens are worth as much as `read` tokens of a text of `unique` ones.

    Args:
        read: tokens read, repeats included.
        unique: tokens of the text.
        decay: λ, above 0.
    """
    if read <= unique or not unique:
        return read if unique else 0.0
    return unique * (1 - math.expm1(-decay * (read / unique - 1)) / decay)
