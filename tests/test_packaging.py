"""What gets installed: the wheel, the constraints, and the environment the scripts make."""

import os
import re
import runpy
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("configs", "data", "model", "train", "scripts")


def run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command], cwd=cwd, env={**os.environ, **environment},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, as setuptools writes beside setup.py and takes old leftovers in."""
    copy = tmp_path_factory.mktemp("source") / "a-clone"
    for name in (*ROOMS, "tests", "slurm"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, copy / name, ignore=ignore)
    for name in ("setup.py", "pyproject.toml", "__init__.py", "py.typed"):
        shutil.copy(ROOT / name, copy / name)
    out = tmp_path_factory.mktemp("wheel")
    done = run(
        sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index",
        "--no-build-isolation", "--wheel-dir", out, ".", cwd=copy,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("site")
    done = run(
        sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index",
        "--target", target, wheel, cwd=target,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return target


@pytest.fixture
def strangers_folder(tmp_path: Path) -> Path:
    """A project that has packages of our rooms' names."""
    for room in (*ROOMS, "xylem_data"):
        (tmp_path / room).mkdir()
        (tmp_path / room / "__init__.py").write_text("raise RuntimeError('a stranger spoke')\n")
    (tmp_path / "data" / "stream.py").write_text("raise RuntimeError('a stranger spoke')\n")
    return tmp_path


def contents(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_wheel_holds_every_file_of_the_rooms(wheel: Path) -> None:
    rooms = {
        f"xylem/{file.relative_to(ROOT).as_posix()}"
        for room in ROOMS
        for file in (ROOT / room).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts and file.suffix != ".sh"
    }
    assert "xylem/configs/experiment/quickstart.yaml" in rooms
    missing = (rooms | {"xylem/__init__.py", "xylem/py.typed"}) - contents(wheel)
    assert not missing, f"not in the wheel: {sorted(missing)}"


def test_the_wheel_holds_neither_setup_nor_tests(wheel: Path) -> None:
    names = contents(wheel)
    assert {name.partition("/")[0] for name in names} == {"xylem", "xylem-0.1.0.dist-info"}
    strange = [n for n in names if re.match(r"xylem/(setup\.py|tests/|slurm/|docs/|\.)", n)]
    assert not strange


def test_the_wheel_names_the_core_and_the_extras(wheel: Path) -> None:
    recipe = runpy.run_path(str(ROOT / "setup.py"))
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith("METADATA"))
        told = archive.read(name).decode()
    core = [
        line for line in told.splitlines() if line.startswith("Requires-Dist") and ";" not in line
    ]
    assert len(core) == len(recipe["CORE"])
    extras = set(re.findall(r"^Provides-Extra: (\S+)$", told, re.M))
    assert extras == {
        "curation", "demo", "deepspeed", "flash", "flash4", "megatron", "s3", "tensorboard", "test",
        "transforms", "wandb",
    }  # fmt: skip


def test_the_wheel_works_beside_a_strangers_data_package(
    installed: Path, strangers_folder: Path
) -> None:
    program = (
        "import xylem.data.stream as stream\n"
        "from xylem.train.compose import compose_config, to_yaml\n"
        "print(stream.__file__)\n"
        "print(to_yaml(compose_config(['experiment=quickstart'])))\n"
    )
    done = run(sys.executable, "-c", program, cwd=strangers_folder, PYTHONPATH=str(installed))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(installed / "xylem" / "data" / "stream.py"))
    assert "name: quickstart" in done.stdout


@pytest.mark.parametrize("how", ["command", "module"])
def test_the_command_works_from_anywhere(installed: Path, strangers_folder: Path, how: str) -> None:
    words = [sys.executable, "-m", "xylem.train"]
    if how == "command":
        words = [str(installed / "bin" / "xylem")]
    version = run(*words, "--version", cwd=strangers_folder, PYTHONPATH=str(installed))
    assert version.stdout.strip() == "xylem 0.1.0", version.stderr
    mistake = run(
        *words, "pretrain", "experiment=quickstrat",
        cwd=strangers_folder, PYTHONPATH=str(installed),
    )  # fmt: skip
    assert mistake.returncode == 2
    assert "quickstrat" in mistake.stderr and "Traceback" not in mistake.stderr


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    exact = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in exact}


def test_constraints_pin_every_requirement_exactly() -> None:
    recipe, pinned = runpy.run_path(str(ROOT / "setup.py")), constraints()
    lines = [*recipe["CORE"], *(line for extra in recipe["EXTRAS"].values() for line in extra)]
    for requirement in map(Requirement, lines):
        name = canonicalize_name(requirement.name)
        if name == "xylem":
            continue  # an extra that holds others
        if name == "flash-attn":
            continue  # built from source against the machine's CUDA
        assert name in pinned, f"constraints.txt has no line for {name}"
        assert requirement.specifier.contains(pinned[name], prereleases=True), (
            f"{requirement} excludes {pinned[name]}"
        )


def test_constraints_name_no_host_and_no_build() -> None:
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert constraints()["torch"] == "2.13.0"
    assert "torchvision" not in constraints()
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    assert lines == sorted(lines, key=str.lower)


def test_the_environment_is_what_the_constraints_say() -> None:
    if not Path(sys.prefix, "xylem-stamp").exists():
        pytest.skip("this environment was not made by scripts/environment.sh")
    for name, version in constraints().items():
        try:
            found = metadata.version(name).partition("+")[0]
        except metadata.PackageNotFoundError:
            continue  # of another extra
        assert found == version, f"{name} is {found}, constraints.txt says {version}"


def old_python(folder: Path) -> Path:
    """A Python that answers like 3.9."""
    fake = folder / "python3.9"
    fake.write_text('#!/bin/sh\n[ "$1" = -V ] && echo Python 3.9.2\nexit 1\n')
    fake.chmod(0o755)
    return fake


def test_environment_refuses_an_old_python(tmp_path: Path) -> None:
    done = run(
        "bash", ROOT / "scripts" / "environment.sh", cwd=tmp_path,
        XYLEM_VENV=str(tmp_path / "venv"), XYLEM_PYTHON=str(old_python(tmp_path)),
    )  # fmt: skip
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "needs Python 3.11 or newer" in line and "Python 3.9.2" in line
    assert "XYLEM_PYTHON=" in line
    assert not (tmp_path / "venv").exists()


def test_environment_refuses_a_folder_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "venv").mkdir()
    (tmp_path / "venv" / "thesis.txt").write_text("years of work")
    done = run(
        "bash", ROOT / "scripts" / "environment.sh", cwd=tmp_path,
        XYLEM_VENV=str(tmp_path / "venv"), XYLEM_PYTHON=sys.executable,
    )  # fmt: skip
    assert done.returncode == 2
    assert "neither empty nor a virtual environment" in done.stderr
    assert (tmp_path / "venv" / "thesis.txt").read_text() == "years of work"


def test_shell_scripts_parse() -> None:
    scripts = [*(ROOT / "scripts").glob("*.sh"), *(ROOT / "slurm").iterdir(), ROOT / ".ci" / "run"]
    assert len(scripts) >= 7
    for script in scripts:
        done = run("bash", "-n", script, cwd=ROOT)
        assert done.returncode == 0, done.stderr
