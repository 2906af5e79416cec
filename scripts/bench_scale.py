"""How does the stream stand a manifest of 2,000 languages and a million shards?

    python -m xylem.scripts.bench_scale [--quick] [--json]

The manifest is simulated: its tables name shards that are not there. Measured are what a run does
before its first batch and what a step's order costs; nothing of it may grow with the samples.
"""

import argparse
import gc
import hashlib
import json
import tempfile
import time
from pathlib import Path

import psutil
from rich.console import Console

from ..data.ledger import SHARE_TOTAL, Ledger
from ..data.manifest import LanguageEntry, Manifest, Source
from ..data.mixture import MixtureConfig, decide_ledger
from ..data.order import Order
from ..data.shards import Shard, ShardSet, write_table
from ..data.stream import Stream, build_order
from ..data.token_line import TokenLine
from .goals import Goal, print_goals

SEQUENCE_LENGTH, SLOT_SEQUENCES, SLOTS = 4096, 4, 256
FAR = 10_000_000
SHARD_TOKENS = 100_000_000


def simulated_manifest(folder: Path, languages: int, shards: int) -> Manifest:
    """A manifest over so many shards, with tables on disk; languages of power-law sizes."""
    weights = [(i + 1) ** -1.0 for i in range(languages)]
    total = sum(weights)
    entries = {}
    for number, weight in enumerate(weights):
        code = f"l{number:04d}_Latn"
        count = max(1, int(shards * weight / total))
        digest = hashlib.sha256(code.encode()).hexdigest()
        rows = [
            Shard(
                path=f"train/{code}/{i:05d}.tar", sha256=digest, bytes=2 * SHARD_TOKENS,
                index_sha256=digest, documents=100_000, tokens=SHARD_TOKENS,
                text_bytes=4 * SHARD_TOKENS,
            )
            for i in range(count)
        ]  # fmt: skip
        line = write_table(folder, f"train/{code}/shards.jsonl", rows)
        nothing = ShardSet(
            table="", sha256=digest, shards=0, bytes=0, documents=0, tokens=0, text_bytes=0
        )
        source = Source(name=code, language=code, languages=(code,), shards=line)
        entries[code] = LanguageEntry(
            code=code, family=f"family_{number % 150:03d}", sources=(source,), heldout=nothing
        )
    families = tuple(sorted({entry.family for entry in entries.values()}))
    manifest = Manifest(
        tokenizer_sha256="", vocab_size=250_000, bos_id=2, eos_id=3, languages=entries,
        families=families, seed=0,
    )  # fmt: skip
    manifest.save(folder)
    return manifest


def resident_mib() -> float:
    """Resident memory of this process, MiB."""
    return float(psutil.Process().memory_info().rss) / 2**20


def walk(order: Order, first: int, steps: int) -> tuple[int, float]:
    """Sequences of some steps, and the seconds their order took."""
    started = time.perf_counter()
    sequences = sum(
        len(slot.sequences) for step in range(first, first + steps) for slot in order.step(step)
    )
    return sequences, time.perf_counter() - started


def measure(folder: Path, languages: int, shards: int, steps: int, console: Console) -> list[Goal]:
    """All measurements, as goals."""
    made = simulated_manifest(folder, languages, shards)
    held = sum(s.shards.shards for s in made.sources.values())
    console.print(f"{languages:,} languages, {held:,} shards, {SLOTS} slots a step")
    del made
    gc.collect()

    started = time.perf_counter()
    manifest = Manifest.load(folder)
    ledger = decide_ledger(
        MixtureConfig(), manifest, steps=2 * FAR, seed=0, slots=SLOTS,
        slot_sequences=SLOT_SEQUENCES, sequence_length=SEQUENCE_LENGTH,
    )  # fmt: skip
    stream = Stream(folder, manifest, ledger)
    first = stream.order.step(0)
    start_up = time.perf_counter() - started
    started = time.perf_counter()
    tables = {s.source for slot in first for s in slot.sequences}
    for source in tables:
        assert TokenLine(folder, manifest.sources[source].shards).shards
    with_tables = start_up + time.perf_counter() - started
    console.print(f"the first step reads {len(tables)} tables of shards")

    order = stream.order
    sequences, seconds = walk(order, 0, steps)
    before = resident_mib()
    walk(order, steps, 3 * steps)
    growth = resident_mib() - before

    text = json.dumps(far_state(ledger, FAR))
    again = build_order(ledger, manifest)
    started = time.perf_counter()
    again.restore(json.loads(text))
    again.step(FAR)
    resume = time.perf_counter() - started
    far_sequences, far_seconds = walk(again, FAR, steps)
    stream.close()
    return [
        Goal("start_up", start_up, 2.0, "s"),
        Goal("start_up_and_the_first_steps_tables", with_tables, 2.0, "s"),
        Goal("state", (len(text) + len(ledger.to_json())) / 1e6, 1.0, "MB"),
        Goal("resume_at_step_10000000", resume, 1.0, "s"),
        Goal("order", 1e6 * seconds / sequences, 50.0, "us a sequence"),
        Goal("order_at_step_10000000", 1e6 * far_seconds / far_sequences, 50.0, "us a sequence"),
        Goal("memory_growth_over_three_times_the_steps", growth, 8.0, "MiB"),
    ]


def far_state(ledger: Ledger, step: int) -> dict[str, object]:
    """A state such as the checkpoint of a far step holds, without the steps that lead there.

    Counts are the targets, rounded by largest remainder: within one of them, as the order's are.
    """
    entry = ledger.at(step)
    families = sorted(entry.families)
    slots = rounded(step * entry.slots, [entry.families[f] for f in families])
    cursors: dict[str, int] = {}
    for family, count in zip(families, slots, strict=True):
        codes = sorted(entry.languages[family])
        shares = [entry.languages[family][code] for code in codes]
        counts = rounded(count * ledger.slot_sequences, shares)
        cursors |= dict(zip(codes, counts, strict=True))
    return {
        "step": step,
        "stage": 0,
        "ledger_hash": ledger.before(step).hash,
        "begins": {},
        "family_slots": slots,
        "cursors": dict(sorted(cursors.items())),
    }


def rounded(units: int, shares: list[int]) -> list[int]:
    """Units over shares in parts of SHARE_TOTAL, as whole numbers."""
    counts = [units * share // SHARE_TOTAL for share in shares]
    left = sorted(range(len(shares)), key=lambda i: -(units * shares[i] % SHARE_TOTAL))
    for i in left[: units - sum(counts)]:
        counts[i] += 1
    return counts


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a twentieth of the shards")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    arguments = parser.parse_args()
    console = Console(stderr=arguments.json)
    languages, shards, steps = (2000, 50_000, 20) if arguments.quick else (2000, 1_000_000, 100)
    with tempfile.TemporaryDirectory() as folder:
        goals = measure(Path(folder), languages, shards, steps, console)
    print_goals(goals, console, as_json=arguments.json)


if __name__ == "__main__":
    main()
