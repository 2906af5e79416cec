"""An embedding of each family's text, from a trained run: first rows of the `domain` router.

    python -m xylem.scripts.domain_embeddings runs/NAME embeddings.safetensors

A family's embedding is the mean of the run's final hidden states over its languages' training
text, equally much of each, brought to length 1 so that the first logits stay small; `shared` is the
mean over all families. `model.routing.domain_rows` reads the file; it needs the same hidden size.
Read next: docs/ROUTING.md.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from ..data.token_line import TokenLine
from ..model.routers import FamilySegment
from ..train.console import progress, say
from ..train.errors import EXIT_MISTAKE, MISTAKES, UserError
from ..train.evaluation import Row, evaluation_rows
from ..train.run_folder import OpenRun, open_run

ROWS = 16
"""Sequences run together."""


@torch.no_grad()
def family_embeddings(opened: OpenRun, tokens: int) -> dict[str, Tensor]:
    """Family -> mean final hidden state of its text [D], length 1; and `shared` over all families.

    Args:
        tokens: of each language's training text, at most; whole documents.
    Raises:
        UserError: a family has no text.
    """
    sequence_length = opened.config.data.sequence_length
    means: dict[str, Tensor] = {}
    with progress("embed families", len(opened.manifest.families)) as advance:
        for family in opened.manifest.families:
            of_languages = []
            for entry in opened.manifest.languages.values():
                if entry.family == family:
                    line = TokenLine(opened.storage, entry.sources[0].shards)
                    rows = list(evaluation_rows(line, sequence_length, 0, tokens))
                    of_languages += [_mean_state(opened, family, rows)] if rows else []
            if not of_languages:
                raise UserError(f"family {family} has no training text to embed")
            means[family] = torch.stack(of_languages).mean(0)
            advance()
    if "shared" in means:
        raise UserError("a family is called shared, which names the shared experts: rename it")
    means["shared"] = torch.stack(list(means.values())).mean(0)
    return {name: (mean / mean.norm()).float() for name, mean in means.items()}


def _mean_state(opened: OpenRun, family: str, rows: list[Row]) -> Tensor:
    """Mean over the tokens of a language's rows, float64 [D]."""
    total, count = torch.zeros(opened.config.model.hidden_size, dtype=torch.float64), 0
    for first in range(0, len(rows), ROWS):
        part = rows[first : first + ROWS]
        inputs_BT, documents_BT = (
            torch.from_numpy(np.stack([row[i] for row in part])) for i in (0, 2)
        )
        segments = (FamilySegment(family, 0, len(part)),)
        hidden_BTD = opened.decoder(inputs_BT, documents_BT, segments)
        held_BT = documents_BT >= 0  # the rest of a row is padding
        total += hidden_BTD[held_BT].double().sum(0)
        count += int(held_BT.sum())
    return total / count


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="run folder, of the hidden size that is wanted")
    parser.add_argument("file", type=Path, help="safetensors file to write")
    parser.add_argument("--step", type=int, help="which checkpoint; the newest without")
    parser.add_argument("--tokens", type=int, default=100_000, help="of each language, at most")
    arguments = parser.parse_args()
    try:
        opened = open_run(arguments.run, arguments.step)
        embeddings = family_embeddings(opened, arguments.tokens)
        arguments.file.parent.mkdir(parents=True, exist_ok=True)
        save_file(embeddings, arguments.file, {"run": opened.config.run.name})
    except MISTAKES as mistake:
        print(f"domain_embeddings: {mistake}", file=sys.stderr)
        sys.exit(EXIT_MISTAKE)
    size = opened.config.model.hidden_size
    say(f"{arguments.file}: {len(embeddings) - 1} families and shared, {size} values each")


if __name__ == "__main__":
    main()
