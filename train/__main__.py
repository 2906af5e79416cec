"""The command line: `xylem VERB`. Each verb is a few lines that call into the rooms.

Verbs that begin something take Hydra settings (`experiment=quickstart run.steps=100`); verbs that
look at something take a run folder. Exit codes: 0 done, 1 an operational failure (with its trace),
2 the user's mistake (one line), 75 pre-empted and saved (requeue me).
"""

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

# Read when PyTorch is loaded, so it is set before: OpenMP's threads sleep while they wait. Spinning
# ones made a step ten times slower when another process shared the cores (docs/LOG.md).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from .. import __version__
from .errors import EXIT_FAILURE, EXIT_MISTAKE, MISTAKES, Preempted, UserError


def prepare(arguments: argparse.Namespace) -> None:
    """Text to tokenizer, shards and manifest."""
    from ..data.prepare import prepare as run_prepare
    from .compose import compose_config
    from .console import OUT

    config = compose_config(arguments.settings).data
    run_prepare(config, force=arguments.force, extend=arguments.extend, console=OUT)


def tokenizer(arguments: argparse.Namespace) -> None:
    """Trains a tokenizer alone, or reports how the prepared one treats each language."""
    from ..data import tokenizer_report as report
    from ..data.prepare import load_prepared, train_corpus_tokenizer
    from ..data.storage import open_storage
    from .compose import compose_config
    from .console import OUT, say

    config = compose_config(arguments.settings).data
    if arguments.train:
        spoken = train_corpus_tokenizer(config, arguments.train, console=OUT)
        texts = report.corpus_texts(config)
        say(f"wrote {arguments.train}; use it with data.tokenizer.path={arguments.train}")
    else:
        storage = open_storage(config.prepared, config.storage)
        manifest, spoken = load_prepared(storage)
        texts = report.heldout_texts(storage, manifest, spoken)
    parallel = arguments.parallel is not None
    if parallel:
        texts = report.parallel_texts(arguments.parallel)
    rows = report.tokenizer_report(spoken, texts, parallel=parallel)
    OUT.print(report.report_table(rows))
    if arguments.json:
        arguments.json.write_text(report.report_json(rows), encoding="utf-8")
        say(f"wrote {arguments.json}")


def plan(arguments: argparse.Namespace) -> None:
    """Parameters, FLOPs, memory, tokens and epochs, before anything is allocated."""
    from ..data.manifest import Manifest
    from ..data.storage import open_storage
    from .compose import compose_config
    from .console import OUT
    from .layout_search import cluster_words, print_search
    from .plan import make_plan, print_plan

    words, settings = cluster_words(arguments.settings, arguments.search)
    config = compose_config(settings)
    storage = open_storage(config.data.prepared, config.data.storage)
    if arguments.search:
        print_search(words, config, Manifest.load(storage), OUT)
        return
    print_plan(make_plan(config, Manifest.load(storage)), config, OUT)


def pretrain(arguments: argparse.Namespace) -> None:
    """Trains a run, or resumes it; the same command does both."""
    from .compose import compose_config
    from .loop import pretrain as run_pretrain

    run_pretrain(compose_config(arguments.settings))


def evaluate(arguments: argparse.Namespace) -> None:
    """Bits per byte on all held-out documents, and accuracy on facts, of a run's checkpoint."""
    from .evaluate import evaluate_run

    evaluate_run(arguments.run, step=arguments.step, facts=arguments.facts)


def export(arguments: argparse.Namespace) -> None:
    """Writes families as dense Qwen3 folders and proves them equal."""
    from .export import export_run

    export_run(
        arguments.run,
        step=arguments.step,
        families=arguments.families or None,
        out=arguments.out,
    )


def inspect(arguments: argparse.Namespace) -> None:
    """Shows what a step's batch holds, or all that was read before a step."""
    from ..data.inspection import inspect_step, print_step
    from ..data.prepare import load_prepared
    from ..data.seen import document_seen, print_document, print_seen, seen
    from ..data.storage import open_storage
    from ..data.stream import Stream, first_ledger
    from .checkpoint import latest_checkpoint, nearest_state, read_state
    from .compose import compose_config
    from .console import OUT, say
    from .run_folder import read_config
    from .run_mixture import read_ledger

    first = arguments.settings[0] if arguments.settings else ""
    is_run = bool(first) and "=" not in first
    if is_run and len(arguments.settings) > 1:
        raise UserError(
            f"{' '.join(arguments.settings[1:])}: a run is shown as it is; give it alone"
        )
    config = read_config(Path(first)) if is_run else compose_config(arguments.settings)
    storage = open_storage(config.data.prepared, config.data.storage)
    manifest, spoken = load_prepared(storage)
    mixture = read_ledger(Path(first)) if is_run else None
    mixture = mixture or first_ledger(config.data, manifest, config.run.steps)
    stream = Stream(storage, manifest, mixture)
    if is_run:
        wanted = arguments.step if arguments.seen is None else arguments.seen
        near = nearest_state(Path(first), wanted)
        if near and near.ledger.before(near.step) == mixture.before(near.step):
            stream.order.restore(near.stream)  # only nearer: the counts are the same
    if arguments.document is not None:
        if arguments.seen is None:
            raise UserError("--document=ID tells how often it was read by a step: give --seen=STEP")
        found = document_seen(stream, arguments.seen, arguments.document)
        print_document(OUT, arguments.seen, arguments.document, found)
    elif arguments.seen is not None:
        newest = latest_checkpoint(Path(first)) if is_run else None
        if newest and arguments.seen > read_state(newest).step:
            say(f"{first} is at step {read_state(newest).step}: this is what will have been read")
        print_seen(OUT, arguments.seen, seen(stream.order, manifest, arguments.seen))
    if arguments.seen is not None:
        stream.close()
        return
    shown = inspect_step(stream, spoken, arguments.step, slots=arguments.slots)
    print_step(OUT, shown, full=arguments.full, tokens=arguments.tokens)
    stream.close()


def mixture(arguments: argparse.Namespace) -> None:
    """Shows what was decided about a run's mixture, or decides it anew from a later step on."""
    from .console import OUT, say
    from .run_mixture import edit_mixture, print_ledger, show_ledger

    edits = (arguments.settings, arguments.quarantine, arguments.release, arguments.new_sources)
    if not any(edits) and arguments.from_step is not None:
        raise UserError(
            f"--from={arguments.from_step} decides nothing: give data.mixture.KEY=VALUE, "
            "--new-sources, --quarantine or --release with it"
        )
    if not any(edits):
        print_ledger(show_ledger(arguments.run), OUT)
        return
    ledger = edit_mixture(
        arguments.run,
        arguments.settings,
        from_step=arguments.from_step,
        quarantine=arguments.quarantine,
        release=arguments.release,
        new_sources=arguments.new_sources,
        drop_later=arguments.drop_later,
        reason=arguments.reason,
    )
    print_ledger(ledger, OUT)
    say(f"decided from step {ledger.entries[-1].from_step} on; the run's next start reads it")


def report(arguments: argparse.Namespace) -> None:
    """Writes a run's report.html."""
    from .console import say
    from .report import write_report

    say(f"wrote {write_report(arguments.run)}")


def checkpoint(arguments: argparse.Namespace) -> None:
    """Verifies a checkpoint, compares two, or writes one in another format."""
    from .checkpoint_conversion import convert
    from .checkpoint_tools import print_difference, print_verified
    from .console import say

    if arguments.what == "verify":
        good = print_verified(arguments.path)
    elif arguments.what == "diff":
        good = print_difference(arguments.one, arguments.other)
    else:
        read = convert(arguments.source, arguments.target, arguments.to, arguments.dtype)
        say(f"wrote {arguments.target} from {read}")
        good = True
    if not good:
        sys.exit(EXIT_FAILURE)


VERBS: dict[str, Callable[[argparse.Namespace], None]] = {
    "prepare": prepare,
    "tokenizer": tokenizer,
    "plan": plan,
    "pretrain": pretrain,
    "evaluate": evaluate,
    "export": export,
    "inspect": inspect,
    "mixture": mixture,
    "report": report,
    "checkpoint": checkpoint,
}


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    top = argparse.ArgumentParser(
        prog="xylem",
        description="Pretrains language models that keep language and knowledge apart.",
        epilog="Settings are key=value, for example experiment=quickstart run.steps=100; "
        "`xylem VERB --help` tells more.",
    )
    top.add_argument("--version", action="version", version=f"xylem {__version__}")
    top.add_argument("--debug", action="store_true", help="show traces of mistakes too")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")
    made = {
        name: verbs.add_parser(name, help=run.__doc__, description=run.__doc__)
        for name, run in VERBS.items()
    }
    for name in ("prepare", "tokenizer", "plan", "pretrain", "inspect"):
        told = "settings of configs/: key=value, or group=option such as experiment=quickstart"
        if name == "inspect":
            told += "; or one run folder"
        made[name].add_argument("settings", nargs="*", metavar="KEY=VALUE", help=told)
    made["plan"].add_argument(
        "--search", action="store_true",
        help="rank all layouts for a cluster: nodes=64 [processes_per_node=8] [hardware=h100]",
    )  # fmt: skip
    made["prepare"].add_argument("--force", action="store_true", help="replace what is there")
    made["prepare"].add_argument(
        "--extend", metavar="NAME", help="add the corpus to the folder that is there, as NAME"
    )
    made["tokenizer"].add_argument(
        "--parallel", type=Path, help="JSONL of parallel text: language (or lang), id, text"
    )
    made["tokenizer"].add_argument(
        "--train", type=Path, metavar="FOLDER", help="train one on the corpus, and write it there"
    )
    made["tokenizer"].add_argument("--json", type=Path, help="write the report there too")
    made["inspect"].add_argument("--step", type=int, default=0, help="step, from 0 (default 0)")
    made["inspect"].add_argument("--slots", type=int, default=None, help="show so many slots")
    made["inspect"].add_argument("--full", action="store_true", help="whole texts")
    made["inspect"].add_argument("--tokens", action="store_true", help="token by token")
    made["inspect"].add_argument(
        "--seen", type=int, metavar="STEP", help="what was read before a step, by source"
    )
    made["inspect"].add_argument(
        "--document", metavar="ID", help="with --seen: how often this document was read"
    )
    made["mixture"].add_argument("run", type=Path, metavar="RUN", help="run folder, runs/NAME")
    made["mixture"].add_argument(
        "settings",
        nargs="*",
        metavar="data.mixture.KEY=VALUE",
        help="what changes; the rest stays as it is at that step",
    )
    made["mixture"].add_argument(
        "--from", dest="from_step", type=int, metavar="STEP",
        help="first step of the new mixture (the newest checkpoint's)",
    )  # fmt: skip
    for name, told in (
        ("quarantine", "leave a shard out: its path in the prepared folder; may be repeated"),
        ("release", "read a shard in quarantine again"),
    ):
        made["mixture"].add_argument(
            f"--{name}", action="append", default=[], metavar="SHARD", help=told
        )
    made["mixture"].add_argument(
        "--new-sources", action="store_true", help="read what `prepare --extend` added"
    )
    made["mixture"].add_argument(
        "--drop-later", action="store_true", help="forget what was decided for later steps"
    )
    made["mixture"].add_argument("--reason", default="", help="why; the ledger keeps it")
    for name in ("evaluate", "export", "report"):
        made[name].add_argument("run", type=Path, metavar="RUN", help="run folder, runs/NAME")
    for name in ("evaluate", "export"):
        made[name].add_argument("--step", type=int, default=None, help="checkpoint (the newest)")
    made["evaluate"].add_argument("--facts", type=Path, help="facts.jsonl (evaluation.facts)")
    made["export"].add_argument("--families", nargs="*", help="families (all)")
    made["export"].add_argument("--out", type=Path, help="folder (RUN/export/step-N)")
    checkpoint_grammar(made["checkpoint"])
    return top


def checkpoint_grammar(verb: argparse.ArgumentParser) -> None:
    """What `checkpoint` takes."""
    actions = verb.add_subparsers(dest="what", required=True, metavar="ACTION")
    made = {}
    for name, told in (
        ("verify", "Reads every byte: seals, headers, finite values, every parameter, whole "
         "optimiser state. Exit 0 whole, 1 damaged."),
        ("diff", "What two checkpoints differ in, by file. Exit 0 equal, 1 different."),
        ("convert", "Writes a checkpoint for other programs. Between engines and layouts there is "
         "nothing to convert: all of them read and write the same files."),
    ):  # fmt: skip
        made[name] = actions.add_parser(name, help=told, description=told)
    where = "a folder checkpoints/step-N, or a run folder for its newest"
    made["verify"].add_argument("path", type=Path, metavar="PATH", help=where)
    for name in ("one", "other"):
        made["diff"].add_argument(name, type=Path, metavar=name.upper(), help=where)
    made["convert"].add_argument("source", type=Path, metavar="SOURCE", help=where)
    made["convert"].add_argument("target", type=Path, metavar="TARGET", help="folder to write")
    made["convert"].add_argument(
        "--to", required=True, choices=("weights", "dcp", "checkpoint"),
        help="weights: safetensors without optimiser state; dcp: a torch.distributed.checkpoint "
        "folder with everything; checkpoint: such a folder back (SOURCE is one)",
    )  # fmt: skip
    made["convert"].add_argument(
        "--dtype", choices=("fp32", "bf16"), default="fp32", help="of --to weights (fp32)"
    )


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line's arguments; settings may stand before and after options."""
    grammar = parser()
    arguments, left = grammar.parse_known_args(argv)
    settings = [word for word in left if "=" in word and not word.startswith("-")]
    if len(settings) < len(left) or (left and not hasattr(arguments, "settings")):
        grammar.error(f"unrecognized arguments: {' '.join(left)}")
    if left:
        arguments.settings = [*arguments.settings, *settings]
    return arguments


def main(argv: Sequence[str] | None = None) -> None:
    """Runs a verb and ends the process with its exit code."""
    arguments = parse(argv)
    for variable in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        os.environ.setdefault(variable, "1")
    try:
        VERBS[arguments.verb](arguments)
    except MISTAKES as mistake:
        if arguments.debug:
            traceback.print_exc()
        print(f"xylem {arguments.verb}: {mistake}", file=sys.stderr)
        end(EXIT_MISTAKE)
    except Preempted as left:
        print(f"xylem {arguments.verb}: {left}", file=sys.stderr)
        sys.exit(left.exit_code)
    except Exception as failure:
        from .checkpoint_files import DamagedCheckpoint
        from .engines.processes import lost_process

        # What is known to happen is told in one line; anything else with its trace.
        told = str(failure) if isinstance(failure, DamagedCheckpoint) else lost_process(failure)
        if not told or arguments.debug:
            traceback.print_exc()
        told = told or f"{type(failure).__name__}: {failure}"
        print(f"xylem {arguments.verb}: {told}", file=sys.stderr)
        end(EXIT_FAILURE)


def end(code: int) -> None:
    """Ends a process that failed; one of several at once, with nothing left to wait for.

    The interpreter's own end takes process groups apart, which can wait for ever for the others.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        sys.exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
