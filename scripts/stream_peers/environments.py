"""Each peer's environment: which versions, how it is made, whether it is there.

Two peers require torchvision, whose builds must match torch's; they do not need it for tokens.
So every peer is installed without its dependencies, after those that it imports, and what one of
them still imports of torchvision is a stub of two names in its own environment.
Read next: `session.py`.
"""

import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

XYLEM = "xylem"


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """What one peer is installed from."""

    title: str
    """How tables name it."""
    adapter: str
    """Module beside this one."""
    packages: tuple[str, ...]
    """The peer's own packages, installed without dependencies; the first gives the version."""
    requires: tuple[str, ...]
    """What they import, with its dependencies."""
    torchvision_stub: bool = False
    """Whether an importable `torchvision` without contents is needed."""


TORCH = "torch==2.13.0"
PEERS = {
    "mosaicml-streaming": Environment(
        title="MosaicML Streaming",
        adapter="mosaic",
        packages=("mosaicml-streaming==0.13.0",),
        requires=(
            TORCH, "numpy==2.1.3", "boto3<2", "Brotli", "google-cloud-storage<3.3", "matplotlib<4",
            "paramiko<4", "python-snappy<1", "tqdm<5", "transformers==4.57.6", "xxhash<4",
            "zstd<2", "oci<3", "azure-storage-blob<13", "azure-storage-file-datalake<13",
            "azure-identity", "catalogue<3",
        ),
        torchvision_stub=True,
    ),
    "litdata": Environment(
        title="LitData",
        adapter="litdata",
        packages=("litdata==0.2.76",),
        requires=(
            TORCH, "numpy==2.4.6", "lightning-utilities", "filelock", "boto3", "requests",
            "urllib3>=1.26", "tifffile", "obstore",
        ),
    ),
    "megatron-energon": Environment(
        title="Megatron-Energon",
        adapter="energon",
        packages=("megatron-energon==7.4.1", "webdataset==1.0.2"),
        requires=(
            TORCH, "numpy==2.4.6", "braceexpand", "click", "filetype", "mfusepy",
            "multi-storage-client>=0.40", "pillow>=10.0.1", "pyyaml", "rapidyaml>=0.10", "s3fs",
            "tqdm",
        ),
    ),
    "webdataset": Environment(
        title="webdataset",
        adapter="webdataset",
        packages=("webdataset==1.0.2",),
        requires=(TORCH, "numpy==2.4.6", "braceexpand", "pyyaml"),
    ),
    "datasets": Environment(
        title="HF datasets + StatefulDataLoader",
        adapter="huggingface",
        packages=("datasets==5.2.0", "torchdata==0.11.0"),
        requires=(
            TORCH, "numpy==2.4.6", "filelock", "pyarrow==26.0.1", "dill", "pandas", "requests",
            "httpx", "tqdm", "xxhash", "multiprocess", "fsspec[http]", "huggingface_hub==2.4.0",
            "packaging", "pyyaml", "urllib3",
        ),
    ),
}  # fmt: skip

_STUBS = {
    "torchvision/__init__.py": "",
    "torchvision/datasets.py": "class VisionDataset: ...\n",
    "torchvision/transforms/__init__.py": "",
    "torchvision/transforms/functional.py": "def to_tensor(image): raise NotImplementedError\n",
}


def adapter_of(peer: str) -> str:
    """The module of `stream_peers` that speaks for a peer, or for Xylem."""
    return "xylem_stream" if peer == XYLEM else PEERS[peer].adapter


def title_of(peer: str) -> str:
    """How tables name a peer."""
    return "Xylem" if peer == XYLEM else PEERS[peer].title


def python_of(peer: str, environments: Path) -> Path | None:
    """The Python of a peer's environment; None where it is not installed."""
    if peer == XYLEM:
        return Path(sys.executable)
    python = environments / peer / "bin" / "python"
    return python if (environments / peer / "installed").is_file() and python.exists() else None


def installed_versions(peer: str, environments: Path) -> list[str]:
    """What was installed, as `name==version`."""
    return (environments / peer / "installed").read_text().split()


def install(environments: Path, say: Callable[[str], object]) -> list[str]:
    """Makes the environments that are missing; the peers that could not be installed."""
    failed = []
    for peer, recipe in PEERS.items():
        folder = environments / peer
        if python_of(peer, environments):
            say(f"{recipe.title}: installed before in {folder}")
            continue
        say(f"{recipe.title}: {' '.join(recipe.packages)} into {folder}")
        try:
            _install(recipe, folder)
        except subprocess.CalledProcessError as error:
            failed.append(peer)
            say(f"{recipe.title}: not installed: {(error.stderr or '').strip()[-500:]}")
    return failed


def _install(recipe: Environment, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-input"]
    _run([*pip, *recipe.requires])
    _run([*pip, "--no-deps", *recipe.packages])
    if recipe.torchvision_stub:
        place = _run([str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"])
        for name, text in _STUBS.items():
            stub = Path(place.strip()) / name
            stub.parent.mkdir(parents=True, exist_ok=True)
            stub.write_text(text)
    versions = _run([str(python), "-m", "pip", "list", "--format=freeze"])
    (folder / "installed").write_text(versions)


def _run(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
