"""Which files do the settings of curation name, and what do they hold?

A path in the settings says nothing of a file that was edited, so sha256 sums of the contents decide
beside the settings whether something was curated or prepared before. Read next: `pipeline.py`,
`../preparation/settings.py`.
"""

import hashlib
from collections.abc import Collection
from functools import lru_cache
from pathlib import Path

from ..errors import DataError
from .config import CurationConfig, QualityConfig
from .language_id import SPELLINGS, model_path
from .reading import UNLABELLED

MODEL_FILES = "language model files"
EVALUATION_FILES = "evaluation files"
THRESHOLD_FILES = "threshold files"


def stamps(config: CurationConfig, codes: Collection[str]) -> dict[str, dict[str, str]]:
    """The sha256 of every file that decides what is kept of a corpus: kind -> name -> sum.

    `codes` are the languages of the corpus, `und` among them if it holds text without a label.
    Raises DataError: a file is missing, or a package that brings one.
    """
    from .evaluation_index import evaluation_files

    models = [model_path(config.language_id)] if config.language_id.enabled else []
    return {
        MODEL_FILES: _sums([(path.name, path) for path in models]),
        EVALUATION_FILES: _sums(evaluation_files(config.decontaminate)),
        THRESHOLD_FILES: _sums([(f.name, f) for f in _threshold_files(codes, config.quality)]),
    }


def config_file(code: str, config: QualityConfig) -> Path | None:
    """FineWeb-2's file of a language, also under FineWeb-2's own code for it; None without one."""
    if not config.fineweb2_configs:
        return None
    names = [code, *(theirs for theirs, ours in SPELLINGS.items() if code in ours)]
    paths = (Path(config.fineweb2_configs) / f"{name}.yml" for name in names)
    return next((path for path in paths if path.is_file()), None)


def _threshold_files(codes: Collection[str], config: QualityConfig) -> list[Path]:
    """FineWeb-2's files of these languages; all of them where any language may turn up."""
    if not config.fineweb2_configs:
        return []
    if UNLABELLED in codes:
        return sorted(Path(config.fineweb2_configs).glob("*_*.yml"))
    return sorted({path for code in codes if (path := config_file(code, config)) is not None})


def _sums(files: list[tuple[str, Path]]) -> dict[str, str]:
    sums: dict[str, list[str]] = {}
    for name, path in files:
        try:
            stat = path.stat()
            found = _sha256(path.resolve(), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        except FileNotFoundError:
            raise DataError(
                f"{path}: was there a moment ago: put it back, or take it out of the settings"
            ) from None
        # Two folders of one name may hold files of one name.
        sums.setdefault(name, []).append(found)
    return {name: " ".join(of_name) for name, of_name in sums.items()}


@lru_cache(maxsize=4096)
def _sha256(path: Path, size: int, changed_ns: int, touched_ns: int) -> str:
    """A file's sum, read once a process for each state of it: models have gigabytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
