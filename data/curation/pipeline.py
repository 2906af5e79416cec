"""From a folder of raw text to a clean corpus folder, in stages that can be killed and resumed.

1. `filter`: script, language, running text (`filtering.py`);
2. `exact`, `near`: duplicates within a language (`duplicates.py`);
3. `decontaminate`: evaluation texts (`contamination.py`);
4. `write`: the clean corpus (`writing.py`); and a report of what was dropped and why (`report.py`).

Everything happens in `<folder>.work`, whose tasks leave completion markers; the clean corpus gets
its name at the end, and only logs, the hit list and the report stay. The result depends on the
text and the settings that decide it, not on tasks, workers, or where they run. Read next:
`execution.py`.
"""

import fcntl
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console

from ..errors import DataError
from ..shards import sync_folder, write_atomically
from .config import CurationConfig
from .reading import RawCorpus, RawFile, raw_files
from .setting_files import MODEL_FILES, stamps

MARK_NAME = ".curation.json"
"""In the clean corpus: what it was made from."""
_SETTINGS_NAME = "settings.json"
_TASKS = "curation.tasks"
Stage = Callable[[CurationConfig, Path, Path, Callable[..., None]], None]
"""Settings, input folder, output folder, `run_stage`."""
_EXECUTION = ("enabled", "folder", "tasks", "workers", "executor", "slurm")
"""Settings that do not decide the result."""
_KEPT = ("logs", "report.json", "report.md", "contamination.jsonl", "lock")
"""What stays of the work folder."""


def curate(
    config: RawCorpus,
    curation: CurationConfig,
    folder: Path,
    console: Console | None = None,
    *,
    force: bool = False,
) -> Path:
    """Writes the clean corpus of `config.corpus` to `folder`, or finds that this was done already.

    A second call goes on where a killed one stopped. `force` throws away what was curated with
    other settings or from other text. Returns `folder`. Raises DataError (the user's text or
    settings), OSError (a full disk), StageFailed (a task that failed otherwise, with its log).
    """
    console = Console(stderr=True) if console is None else console
    if find_spec("datatrove") is None:
        raise DataError(
            "curation needs datatrove, which is not installed: run `pip install "
            "'xylem[curation]'`, or set curation.enabled=false"
        )
    from .filtering import check_model
    from .quality import check_languages

    folder = Path(folder)
    work = folder.with_name(folder.name + ".work")
    files = raw_files(Path(config.corpus), config.languages)
    check_languages(curation.quality, sorted({file.language for file in files}))
    deciding = _deciding(config, curation, files)
    if not (force and _other(folder, work, deciding)) and _is_done(folder, deciding):
        _say(console, f"{folder}: curated before from this text and these settings: nothing to do")
        if (work / _SETTINGS_NAME).is_file():
            with _locked(work):
                _clear(work)  # killed before it could
        return folder
    check_model(curation, files)
    work.mkdir(parents=True, exist_ok=True)
    with _locked(work):
        if force:
            _remove_other(folder, work, deciding)
        if not _is_done(folder, deciding):  # by another run, until the lock was had
            _begin(work, deciding, curation.tasks)
            stages = _run_stages(config, curation, files, work, console)
            _finish(folder, work, stages, deciding, console)
    return folder


def _run_stages(
    config: RawCorpus,
    curation: CurationConfig,
    files: list[RawFile],
    work: Path,
    console: Console,
) -> list[str]:
    """Runs every stage; returns the names of those that dropped documents."""
    from . import filtering, writing
    from .contamination import decontamination_stage
    from .duplicates import exact_stage, minhash_stages
    from .execution import run_stage

    work = work.resolve()
    stages: list[tuple[str, Stage | None]] = [(filtering.STAGE, None)]
    stages += [("exact", exact_stage)] if curation.exact else []
    stages += [("near", minhash_stages)] if curation.minhash.enabled else []
    stages += [("decontaminate", decontamination_stage)] if curation.decontaminate.sources else []
    folder = work / filtering.STAGE
    for name, stage in stages:
        _say(console, f"curation: {name} …")
        output = work / name
        output.mkdir(exist_ok=True)
        if stage is None:
            step = filtering.FilterStep(
                raw=config,
                config=curation,
                files=tuple(files),
                output=output,
                languages=tuple(config.languages),
            )
            run_stage(name, [step], curation.tasks, curation, work)
        else:
            stage(curation, folder, output, run_stage)
        folder = output
    _say(console, f"curation: {writing.STAGE} …")
    rehydrate = curation.minhash.enabled and curation.minhash.rehydrate
    last = writing.WriteStep(input=folder, output=work / writing.STAGE, rehydrate=rehydrate)
    last.output.mkdir(exist_ok=True)
    run_stage(writing.STAGE, [last], curation.tasks, curation, work)
    return [name for name, _ in stages]


def _finish(
    folder: Path, work: Path, stages: list[str], deciding: Mapping[str, Any], console: Console
) -> None:
    """Writes the report, gives the clean corpus its name, and clears the work folder."""
    from . import report, writing

    languages = report.collect(work, stages)
    models = [f"{name} (sha256 {found})" for name, found in deciding[MODEL_FILES].items()]
    facts = {"language model": ", ".join(models) or "none", "settings": dict(deciding)}
    report.save(work, languages, facts)
    clean = work / writing.STAGE
    if not any(clean.iterdir()):
        report.show(console, languages)
        raise DataError(
            f"{folder}: no document was kept, see {work}/{report.REPORT_MD}: check the corpus, or "
            "loosen curation.quality"
        )
    write_atomically(clean / MARK_NAME, _encoded(deciding))
    if folder.exists():
        folder.rmdir()
    clean.rename(folder)
    sync_folder(folder.parent)
    _clear(work)
    report.show(console, languages)
    _say(console, f"{folder}: clean corpus; {work}/{report.REPORT_MD} says what was dropped")


# What decides the result, and what is there already


def _deciding(config: RawCorpus, curation: CurationConfig, files: list[RawFile]) -> dict[str, Any]:
    """Everything that the result depends on, by name, as JSON reads it back."""
    corpus = Path(config.corpus)
    settings: dict[str, Any] = {
        f"data.{name}": getattr(config, name)
        for name in ("text_field", "id_field", "copies_field", "on_bad_line", "seed")
    }
    settings["data.languages"] = sorted(config.languages)
    for name, value in asdict(curation).items():
        if name not in _EXECUTION:
            settings[f"curation.{name}"] = value
    settings |= stamps(curation, {file.language for file in files})
    settings["corpus files"] = {
        file.path.relative_to(corpus).as_posix(): _stamp(file.path) for file in files
    }
    read_back: dict[str, Any] = json.loads(_encoded(settings))
    return read_back


def _stamp(path: Path) -> list[Any]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]


def _encoded(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False).encode()


def _is_done(folder: Path, deciding: Mapping[str, Any]) -> bool:
    """Whether the folder holds what is asked for; raises DataError if it holds something else."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    mark = folder / MARK_NAME
    if not mark.is_file():
        raise DataError(
            f"{folder}: is there, but curation did not write it: set curation.folder to another "
            "folder"
        )
    changes = _changes(_read(mark), deciding)
    if changes:
        raise DataError(
            f"{folder}: curated before, but {changes}: choose another curation.folder, or remove "
            "this one"
        )
    return True


def _begin(work: Path, deciding: Mapping[str, Any], tasks: int) -> None:
    """Notes what a killed run was doing, or checks that this one goes on with the same."""
    now = {**deciding, _TASKS: tasks}
    path = work / _SETTINGS_NAME
    if path.is_file():
        changes = _changes(_read(path), now)
        if changes:
            raise DataError(
                f"{work}: a killed run can be gone on with, but {changes}: change it back, or "
                "remove this folder to begin anew"
            )
        return
    _clear(work, keep=("lock",))
    write_atomically(path, _encoded(now))


def _clear(work: Path, keep: Sequence[str] = _KEPT) -> None:
    """Removes what is no longer needed; the settings last, for they say that there is more."""
    for entry in sorted(work.iterdir(), key=lambda entry: entry.name == _SETTINGS_NAME):
        if entry.name not in keep:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def _other(folder: Path, work: Path, deciding: Mapping[str, Any]) -> list[Path]:
    """Which of the two hold what was curated with other settings or from other text."""
    return [
        root
        for root, path in ((work, work / _SETTINGS_NAME), (folder, folder / MARK_NAME))
        if path.is_file() and _changes(_read(path), {**_read(path), **deciding})
    ]


def _remove_other(folder: Path, work: Path, deciding: Mapping[str, Any]) -> None:
    """Removes what `_other` finds; the lock stays, for this run holds it."""
    other = _other(folder, work, deciding)
    if work in other:
        _clear(work, keep=("lock",))
    if folder in other:
        # Under its own name no half of it is ever seen.
        replaced = work / "replaced"
        folder.rename(replaced)
        shutil.rmtree(replaced)


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What differs between two sets of settings, in words; empty if nothing does."""
    found = []
    for name in sorted({*before, *now}):
        old: Any = before.get(name)
        new: Any = now.get(name)
        if old == new:
            continue
        if name.endswith("files"):
            old, new = old or {}, new or {}
            files = sorted(f for f in {*old, *new} if old.get(f) != new.get(f))
            found.append(f"{len(files)} {name} changed ({files[0]} …)")
        elif isinstance(old, dict) and isinstance(new, dict):
            keys = sorted(key for key in {*old, *new} if old.get(key) != new.get(key))
            found += [f"{name}.{key} was {old.get(key)!r}, is {new.get(key)!r}" for key in keys]
        else:
            found.append(f"{name} was {old!r}, is {new!r}")
    return "; ".join(found)


def _read(path: Path) -> dict[str, Any]:
    try:
        read = json.loads(path.read_text("utf-8"))
    except ValueError:
        read = None
    if not isinstance(read, dict):
        raise DataError(f"{path}: damaged: remove {path.parent} and run the same command again")
    return read


@contextmanager
def _locked(work: Path) -> Iterator[None]:
    with open(work / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(
                f"{work}: another run is curating there: wait for it, or choose another "
                "curation.folder"
            ) from None
        yield


def _say(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)
