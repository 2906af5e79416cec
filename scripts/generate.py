"""Generates text from exported folders with plain transformers: no Xylem, no remote code.

`python -m xylem.scripts.generate FOLDER... [--prompt TEXT] [--tokens N]` prints one line a folder:
a greedy and a sampled continuation. A folder of family folders (RUN/export/step-N) stands for all
of them. Without a prompt, it takes the real beginning that the export stored in `prompts.json`.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from xylem.train.console import say
from xylem.train.errors import EXIT_MISTAKE, MISTAKES, UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class Continuation:
    """What a model wrote."""

    folder: str
    """Name of the folder, the family."""
    language: str
    """Language code of a stored prompt; empty for a given one."""
    prompt: str
    """What it continued."""
    greedy: str
    """The most likely token each time."""
    sampled: str
    """Tokens drawn by their probability."""

    def __str__(self) -> str:
        told = " ".join(part for part in (self.folder, self.language) if part)
        line = f"{told}: «{self.prompt}» greedy:{self.greedy} │ sampled:{self.sampled}"
        return " ⏎ ".join(line.splitlines())


def model_folders(paths: Sequence[Path]) -> list[Path]:
    """The exported folders that paths stand for: themselves, or the folders inside.

    Raises:
        UserError: a path is neither.
    """
    found: list[Path] = []
    for path in paths:
        inside = [path] if (path / "config.json").exists() else []
        if not inside and path.is_dir():
            inside = sorted(each.parent for each in path.glob("*/config.json"))
        if not inside:
            raise UserError(
                f"{path} is no exported model and holds none (no config.json); give a folder that "
                "`xylem export` wrote, such as runs/NAME/export/step-N"
            )
        found += inside
    return found


def stored_prompts(folder: Path) -> list[tuple[str, str]]:
    """(language, prompt) pairs that the export stored.

    Raises:
        UserError: the folder has none.
    """
    path = folder / "prompts.json"
    if not path.exists():
        raise UserError(f"{folder} stores no prompts (prompts.json): give one with --prompt")
    stored = json.loads(path.read_text(encoding="utf-8"))["prompts"]
    return [(each["language"], each["prompt"]) for each in stored]


@torch.no_grad()
def continuations(
    folder: Path,
    prompts: Sequence[tuple[str, str]],
    *,
    tokens: int,
    temperature: float = 0.8,
    seed: int = 0,
) -> list[Continuation]:
    """Continues prompts with the model of a folder, greedily and by sampling.

    Args:
        prompts: (language, prompt) pairs.
        tokens: at most so many new ones each.
    """
    import transformers
    from transformers.utils import logging

    bars: Any = logging
    bars.disable_progress_bar()  # a bar a folder would stand between the lines
    auto_model: Any = transformers.AutoModelForCausalLM
    model = auto_model.from_pretrained(folder, local_files_only=True).eval()
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    # Sampling draws from PyTorch's own stream: the same seed gives the same text.
    torch.manual_seed(seed)

    def continue_(inputs: Any, **how: Any) -> str:
        out = model.generate(**inputs, max_new_tokens=tokens, **how)
        new = out[0, inputs["input_ids"].shape[1] :]
        return str(tokenizer.decode(new, skip_special_tokens=True))

    written = []
    for language, prompt in prompts:
        inputs = tokenizer(prompt, return_tensors="pt")
        written.append(
            Continuation(
                folder=folder.name,
                language=language,
                prompt=prompt,
                greedy=continue_(inputs, do_sample=False),
                sampled=continue_(inputs, do_sample=True, temperature=temperature),
            )
        )
    return written


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a line a folder; exits with 2 for a mistake."""
    grammar = argparse.ArgumentParser(prog="generate", description=__doc__)
    grammar.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    grammar.add_argument("--prompt", help="text to continue (the stored prompts)")
    grammar.add_argument("--tokens", type=int, default=24, help="new tokens (24)")
    grammar.add_argument("--temperature", type=float, default=0.8, help="of the sample (0.8)")
    grammar.add_argument("--seed", type=int, default=0, help="of the sample (0)")
    grammar.add_argument(
        "--every-language", action="store_true", help="a line for each language of a folder"
    )
    given = grammar.parse_args(argv)
    try:
        if given.tokens < 1 or given.temperature <= 0:
            raise UserError(
                f"--tokens {given.tokens} --temperature {given.temperature}: "
                "tokens must be at least 1, temperature above 0"
            )
        if given.prompt == "":
            raise UserError("--prompt is empty: give some text, or leave it out")
        for folder in model_folders(given.folders):
            prompts = [("", given.prompt)] if given.prompt else stored_prompts(folder)
            shown = prompts if given.every_language else prompts[:1]
            for line in continuations(
                folder,
                shown,
                tokens=given.tokens,
                temperature=given.temperature,
                seed=given.seed,
            ):
                say(str(line))
    except MISTAKES as mistake:
        print(f"generate: {mistake}", file=sys.stderr)
        sys.exit(EXIT_MISTAKE)


if __name__ == "__main__":
    main()
