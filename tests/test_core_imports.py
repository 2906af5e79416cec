"""The core imports with the core's dependencies alone; the extras are really extra."""

import importlib.util
import json
import os
import re
import runpy
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("data", "model", "train", "configs", "scripts")
EXTRA_MODULES = {
    "accelerate", "babel", "ctranslate2", "datasets", "deepspeed", "flash_attn", "hypothesis",
    "lm_eval", "megatron", "num2words", "pytest", "tensorboard", "tensorboardX", "wandb",
}  # fmt: skip

IMPORTER = """
import importlib, json, sys, traceback

blocked, modules = json.loads(sys.argv[1])


class Without:
    # Makes the blocked packages look as if they were not installed, to imports and to find_spec.
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            return None
        return self.finder.find_spec(name, path, target)


sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
failed = {}
for module in modules:
    try:
        importlib.import_module(module)
    except BaseException as error:
        failed[module] = "".join(traceback.format_exception_only(error)).strip()
loaded = sorted(set(blocked) & set(sys.modules))
print("RESULT" + json.dumps([failed, loaded]))
"""


def core_distributions() -> set[str]:
    """Names of the core's requirements and, through them, of all that they require."""
    todo = [Requirement(line) for line in runpy.run_path(str(ROOT / "setup.py"))["CORE"]]
    found: set[str] = set()
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        if name in found:
            continue
        found.add(name)
        for line in metadata.distribution(name).requires or []:
            needed = Requirement(line)
            extras = ["", *requirement.extras]
            if needed.marker is None or any(needed.marker.evaluate({"extra": e}) for e in extras):
                todo.append(needed)
    return found


def beyond_the_core() -> set[str]:
    """Top-level modules of every installed package that the core does not ask for."""
    core = core_distributions() | {"xylem", "pip"}
    beyond = {
        module
        for module, names in metadata.packages_distributions().items()
        if not any(canonicalize_name(name) in core for name in names)
    }
    return (beyond | EXTRA_MODULES) - set(sys.stdlib_module_names)


def import_in_fresh_interpreter(
    modules: list[str], blocked: set[str]
) -> tuple[dict[str, str], list[str]]:
    """Which modules failed, with the error, and which blocked ones were loaded all the same."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / ".typing"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", IMPORTER, json.dumps([sorted(blocked), modules])],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    assert "RESULT" in done.stdout, done.stderr
    failed, loaded = json.loads(done.stdout.rpartition("RESULT")[2])
    return failed, loaded


def all_modules() -> list[str]:
    files = sorted(file for room in ROOMS for file in (ROOT / room).rglob("*.py"))
    dotted = (file.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".") for file in files)
    return [f"xylem.{name.removesuffix('.__init__')}" for name in dotted]


STAGES_OF_CURATION = (
    "xylem.data.curation.",
    "xylem.scripts.bench_curation",
    "xylem.scripts.planted_corpus",
)
"""Modules that are loaded only where curation is asked for, and may need its extra."""
LOADED_BEFORE = {"xylem.data.curation.config", "xylem.data.curation.pipeline"}
"""Modules of curation that are loaded before it is known whether the extra is there."""
OTHER_ENGINES = (
    "xylem.train.engines.deepspeed.",
    "xylem.train.engines.megatron.",
    "xylem.scripts.megatron_moe_arm",
    "xylem.scripts.engine_arms",
)
"""Modules that are loaded only where another engine is asked for, and may need its extra."""
CONFIGS_OF_ENGINES = {
    "xylem.train.engines.deepspeed.config",
    "xylem.train.engines.megatron.config",
}
"""Those of them that every config has."""
TRITON_KERNELS = "xylem.model.kernels."
"""Modules that are loaded only on a GPU, and only where Triton is."""


def test_every_module_imports_with_core_dependencies_only() -> None:
    modules = [
        module
        for module in all_modules()
        if not module.startswith((*STAGES_OF_CURATION, *OTHER_ENGINES, TRITON_KERNELS))
        or module in LOADED_BEFORE | CONFIGS_OF_ENGINES
    ]
    assert {"xylem.train.__main__", "xylem.data.world.facts", "xylem.scripts"} <= set(modules)
    failed, loaded = import_in_fresh_interpreter(modules, beyond_the_core())
    told = "\n".join(f"{module}: {error}" for module, error in failed.items())
    assert not failed, f"needs more than setup.py's CORE:\n{told}"
    assert not loaded, f"loaded although blocked, the test is broken: {loaded}"


def test_the_check_sees_an_import_of_an_extra() -> None:
    failed, _ = import_in_fresh_interpreter(["json", "babel", "pytest"], beyond_the_core())
    assert set(failed) == {"babel", "pytest"}
    assert all(error.startswith("ModuleNotFoundError") for error in failed.values())


def test_core_and_extras_do_not_overlap() -> None:
    recipe = runpy.run_path(str(ROOT / "setup.py"))

    def names(lines: list[str]) -> set[str]:
        return {re.split(r"[<>=!~\[; ]", line)[0].lower() for line in lines}

    for extra, lines in recipe["EXTRAS"].items():
        both = names(recipe["CORE"]) & names(lines)
        assert not both, f"[{extra}] repeats what the core requires: {both}"


def test_torchvision_is_absent() -> None:
    assert importlib.util.find_spec("torchvision") is None, (
        "torchvision is installed: a CUDA build of it beside a CPU torch makes "
        "`from transformers import ...` fail; find what pulled it in, pip uninstall torchvision"
    )
