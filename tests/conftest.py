"""What several test files build on: a small prepared corpus, and commands run as users run them."""

import gzip
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

# Where there is no GPU, Triton's kernels run in its interpreter; its first import decides.
if shutil.which("nvidia-smi") is None:
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Language -> letters its made-up words are drawn from.
ALPHABETS = {
    "deu_Latn": "abdeinrstuß",
    "swe_Latn": "abdeinrståö",
    "swh_Latn": "abkimnuwaz",
    "tam_Taml": "கஙசஞடணதநபம",
    "rus_Cyrl": "абвгдежиклмн",
}


@dataclass(frozen=True, slots=True)
class Prepared:
    """A corpus prepared for tests, and the settings that name it."""

    corpus: Path
    folder: Path
    settings: tuple[str, ...]


def write_corpus(folder: Path, documents: int = 60, seed: int = 0) -> Path:
    """A corpus of made-up words, of unequal sizes, with equal ids in every language."""
    folder.mkdir(parents=True, exist_ok=True)
    for rank, (code, letters) in enumerate(sorted(ALPHABETS.items())):
        draw = random.Random(f"{seed}/{code}")
        words = ["".join(draw.choices(letters, k=draw.randint(2, 7))) for _ in range(120)]
        with gzip.open(folder / f"{code}.jsonl.gz", "wt", encoding="utf-8") as file:
            for number in range(documents // (1 + rank) + 20):
                text = " ".join(draw.choices(words, k=draw.randint(20, 90))) + "."
                file.write(json.dumps({"id": f"doc/{number}", "text": text}) + "\n")
    return folder


@pytest.fixture(scope="module", autouse=True)
def process_as_it_was() -> Iterator[None]:
    """Takes back what a file's tests changed about the process, which the next file shares."""
    yield
    if "torch" in sys.modules:
        import torch

        torch.set_flush_denormal(False)  # an engine's start sets it; hypothesis refuses it
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Five languages in five families, prepared once a worker."""
    from xylem.data.prepare import prepare as run_prepare
    from xylem.train.compose import compose_config

    root = tmp_path_factory.mktemp("prepared")
    corpus, folder = write_corpus(root / "corpus"), root / "shards"
    settings = (
        "data=default",
        f"data.corpus={corpus}",
        f"data.prepared={folder}",
        "data.tokenizer.vocab_size=400",
        "data.sequence_length=32",
        "data.slot_sequences=2",
        "data.slots_per_step=4",
        "data.heldout_share=0.2",
        "engine.precision=fp32",
        "engine.threads=1",
    )
    run_prepare(compose_config(settings).data)
    return Prepared(corpus, folder, settings)


Command = Callable[..., "subprocess.CompletedProcess[str]"]


def environment(**more: str) -> dict[str, str]:
    """The environment of a command: this checkout's package, one thread, no network."""
    root = Path(__file__).resolve().parent.parent
    path = os.pathsep.join([str(root / ".typing"), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path.rstrip(os.pathsep), "OMP_NUM_THREADS": "1", **more}


def xylem_command(*arguments: str, processes: int = 1) -> list[str]:
    """`xylem ARGUMENTS`, under torchrun where several processes are asked for."""
    if processes == 1:
        return [sys.executable, "-m", "xylem.train", *arguments]
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return [sys.executable, *launcher, "-m", "xylem.train", *arguments]


@pytest.fixture(scope="session")
def xylem() -> Command:
    """Runs `xylem ...` to its end and returns what came of it."""

    def run(
        *arguments: str, processes: int = 1, timeout: float = 180, **more: str
    ) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            xylem_command(*arguments, processes=processes),
            env=environment(**more),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run


def train_losses(run: Path) -> list[float]:
    """The training loss of every step of a run."""
    from xylem.train.metrics import read_metrics

    rows = read_metrics(run, "train")
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    return [row["loss"] for row in rows]


def run_settings(prepared: Prepared, root: Path, name: str, *more: str) -> Sequence[str]:
    """Settings of a short run in its own folder."""
    return [*prepared.settings, f"run.root={root}", f"run.name={name}", *more]
