"""The rooms and their one direction (DESIGN: data and model import nothing of ours, train both).

Everything is read from syntax trees, so that an import inside a function or under TYPE_CHECKING
counts as well. The checkers take a root, and are themselves tested on fabricated violations.
"""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "xylem"
MAY_IMPORT = {
    "data": {"data"},
    "model": {"model"},
    "train": {"train", "model", "data", "configs"},
    "configs": {"configs"},
    "scripts": {"scripts", "train", "model", "data", "configs"},
}
SPEAK_RELATIVELY = {"data", "model", "train", "configs"}
IMPORTING_CALLS = {"importlib.import_module", "import_module", "__import__"}
LONGEST = 500
VAGUE = {"util", "utils", "helper", "helpers", "misc", "common", "base", "manager"}


def sources(root: Path, *folders: str) -> list[Path]:
    """Every Python file of the folders, in a fixed order."""
    return sorted(path for folder in folders for path in (root / folder).rglob("*.py"))


def module_name(root: Path, file: Path) -> str:
    """`data/world/facts.py` -> `xylem.data.world.facts`; an `__init__.py` is its package."""
    parts = file.relative_to(root).with_suffix("").parts
    return ".".join((PACKAGE, *(parts[:-1] if parts[-1] == "__init__" else parts)))


def imports(root: Path, file: Path) -> Iterator[tuple[int, str, bool]]:
    """Line, absolute dotted target and whether it was written relatively, of each import.

    `from X import a` gives `X.a`: whether `a` is a module or a name, `X.a` begins with its room.
    """
    package = module_name(root, file)
    if file.name != "__init__.py":
        package = package.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"), filename=str(file))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, False
        elif isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                origin = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                yield node.lineno, f"{origin}.{alias.name}", bool(node.level)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in IMPORTING_CALLS:
            for argument in node.args[:1]:
                if isinstance(argument, ast.Constant):
                    yield node.lineno, str(argument.value), False


def wrong_imports(root: Path) -> list[str]:
    """One line per import against the rules: file, import, rule."""
    found = []
    for room, allowed in MAY_IMPORT.items():
        for file in sources(root, room):
            where = file.relative_to(root).as_posix()
            for line, target, relative in imports(root, file):
                top, _, rest = target.partition(".")
                if top in MAY_IMPORT and not relative:
                    found.append(
                        f"{where}:{line} imports {target}: a plain `{top}` may be anybody's "
                        f"folder; say `from ..{top}` here, `{PACKAGE}.{top}` elsewhere"
                    )
                if top != PACKAGE:
                    continue
                other = rest.partition(".")[0]
                if (other in MAY_IMPORT or other == "tests") and other not in allowed:
                    mine = ", ".join(sorted(allowed - {room})) or "nothing of ours"
                    found.append(
                        f"{where}:{line} imports {target}: {room}/ may import {mine} "
                        "(data, model <- train <- scripts, tests)"
                    )
                elif not relative and room in SPEAK_RELATIVELY:
                    found.append(
                        f"{where}:{line} imports {target}: inside {room}/ imports are relative"
                    )
    return found


def import_circle(root: Path) -> list[str]:
    """The modules of one import circle, first again at the end; empty where there is none."""
    files = {module_name(root, file): file for file in sources(root, *MAY_IMPORT)}
    needs: dict[str, set[str]] = {name: set() for name in files}
    for name, file in files.items():
        for _, target, _ in imports(root, file):
            # `from X import a`: the module X.a if there is one, else the module X.
            module = target if target in files else target.rpartition(".")[0]
            if module in files and module != name:
                needs[name].add(module)
    try:
        TopologicalSorter(needs).prepare()
    except CycleError as circle:
        return list(circle.args[1])
    return []


def long_files(root: Path) -> list[str]:
    """Files of the rooms over the limit, with their lines."""
    lines = {
        file.relative_to(root).as_posix(): len(file.read_text(encoding="utf-8").splitlines())
        for file in sources(root, *MAY_IMPORT)
    }
    return [f"{name} has {count} lines" for name, count in lines.items() if count > LONGEST]


def vague_names(root: Path) -> list[str]:
    """Files and folders whose name says nothing of the field."""
    return [
        path.relative_to(root).as_posix()
        for folder in (*MAY_IMPORT, "tests", "slurm")
        for path in sorted((root / folder).rglob("*"))
        if path.stem in VAGUE
    ]


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return root


def test_imports_go_one_way() -> None:
    wrong = wrong_imports(ROOT)
    assert not wrong, "\n".join(wrong)


def test_no_import_circle() -> None:
    circle = import_circle(ROOT)
    assert not circle, " -> ".join(circle) + ": no import circles; move what both need"


def test_no_file_over_500_lines() -> None:
    long = long_files(ROOT)
    assert not long, "\n".join(long) + f"\nover {LONGEST} lines: a file answers one question"


def test_no_vague_file_names() -> None:
    vague = vague_names(ROOT)
    assert not vague, f"{', '.join(vague)}: name files after things of the field"


def test_the_rooms_are_there() -> None:
    """Else every test above passes on nothing."""
    for room in MAY_IMPORT:
        assert (ROOT / room / "__init__.py").is_file(), f"{room}/ has no __init__.py"
    names = {module_name(ROOT, file) for file in sources(ROOT, *MAY_IMPORT)}
    assert {"xylem.data.stream", "xylem.model.decoder", "xylem.train.loop"} <= names


def test_package_files_hold_a_docstring_only() -> None:
    for file in (path for path in sources(ROOT, *MAY_IMPORT) if path.name == "__init__.py"):
        body = ast.parse(file.read_text(encoding="utf-8")).body
        what = [type(node).__name__ for node in body[1:]]
        assert len(body) <= 1, f"{file.relative_to(ROOT)} holds {what}: no re-exports"


@pytest.mark.parametrize(
    ("file", "line", "told"),
    [
        ("data/a.py", "from ..train.loop import fit", "data/ may import nothing of ours"),
        ("data/deep/a.py", "from ...model import decoder", "data/ may import nothing of ours"),
        ("model/a.py", "import xylem.data.stream", "model/ may import nothing of ours"),
        ("model/a.py", "def f():\n    from .. import data", "model/ may import nothing of ours"),
        ("model/a.py", "import importlib\nimportlib.import_module('xylem.train')", "model/ may"),
        (
            "train/a.py",
            "from ..scripts import make_world",
            "train/ may import configs, data, model",
        ),
        ("train/a.py", "from ..tests import tiny", "train/ may import configs, data, model"),
        (
            "train/a.py",
            "from xylem.data.stream import Stream",
            "inside train/ imports are relative",
        ),
        ("train/a.py", "import data.stream", "may be anybody's folder"),
        ("scripts/a.py", "from model.decoder import Decoder", "may be anybody's folder"),
    ],
)
def test_the_checker_sees_a_wrong_import(tmp_path: Path, file: str, line: str, told: str) -> None:
    wrong = wrong_imports(write(tmp_path, {file: line}))
    assert len(wrong) == 1
    assert wrong[0].startswith(f"{file}:") and told in wrong[0]


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("train/a.py", "from ..data.stream import Stream\nfrom ..model import decoder"),
        ("train/a.py", "from .. import __version__\nimport torch\nfrom . import loop"),
        ("data/deep/a.py", "from ..errors import DataError\nimport datasets"),
        ("scripts/a.py", "from xylem.train.loop import fit\nfrom ..data import stream"),
    ],
)
def test_the_checker_lets_a_right_import_pass(tmp_path: Path, file: str, line: str) -> None:
    assert wrong_imports(write(tmp_path, {file: line})) == []


def test_the_checker_sees_a_circle(tmp_path: Path) -> None:
    write(tmp_path, {"data/a.py": "from .b import x", "data/b.py": "from . import c"})
    assert import_circle(tmp_path) == []
    write(tmp_path, {"data/c.py": "def f():\n    from .a import y"})
    circle = import_circle(tmp_path)
    assert set(circle) == {"xylem.data.a", "xylem.data.b", "xylem.data.c"}


def test_the_checker_sees_long_files_and_vague_names(tmp_path: Path) -> None:
    write(tmp_path, {"data/a.py": "x = 1\n" * 500, "model/stream.py": ""})
    assert long_files(tmp_path) == [] and vague_names(tmp_path) == []
    write(tmp_path, {"data/b.py": "x = 1\n" * 501, "model/utils.py": "", "tests/common/a.py": ""})
    assert long_files(tmp_path) == ["data/b.py has 501 lines"]
    assert vague_names(tmp_path) == ["model/utils.py", "tests/common"]
