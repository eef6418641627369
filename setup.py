from pathlib import Path

from setuptools import find_packages, setup

# The operators live in kernels/ at the top level and are imported as pgolf.kernels: the bare name
# "kernels" belongs to another package, which fetches FlashAttention-3 and may be installed beside this one.
operators = ["pgolf.kernels"] + ["pgolf.kernels." + name for name in find_packages("kernels")]

setup(
    name="pgolf",
    version="0.1.0",
    description="Train, pack and honestly score the best language model that fits in 16,000,000 bytes",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    license_files=["LICENSE"],
    author="The pgolf authors",
    keywords=["language model", "compression", "triton", "quantization", "parameter golf"],
    project_urls={"Challenge": "https://github.com/openai/parameter-golf"},
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: GPU :: NVIDIA CUDA",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: System :: Archiving :: Compression",
        "Typing :: Typed",
    ],
    python_requires=">=3.11",
    packages=find_packages(include=["pgolf", "pgolf.*"]) + operators,
    package_dir={"pgolf": "pgolf", "pgolf.kernels": "kernels"},
    package_data={"pgolf": ["presets/*.toml", "report/*.css", "report/*.js", "py.typed"]},
    entry_points={"console_scripts": ["pgolf=pgolf.run:program"]},
    install_requires=[
        "torch>=2.11",
        "triton>=3.6; platform_system == 'Linux'",
        "numba>=0.61",
        "numpy>=1.26",
        "sentencepiece>=0.2",
        "zstandard>=0.23",
        "constriction>=0.4",
        "safetensors>=0.5",
        "tomli-w>=1.0",
        "tyro>=0.9",
        "rich>=13",
    ],
    extras_require={
        "test": [
            "pytest>=8",
            "pytest-xdist>=3.6",
            "pytest-benchmark>=5",
            "hypothesis>=6",
            "huggingface_hub>=0.30",
            "pdoc>=15",
            "tensorboard>=2.19",
        ],
        "checks": ["ruff>=0.17", "mypy>=2.4", "import-linter>=2.17", "vulture>=2.16"],
        "fa3": ["kernels>=0.9"],
        "data": ["huggingface_hub>=0.30"],
        "hub": ["huggingface_hub>=0.30"],
        # where a run's figures also go: training.sinks
        "tensorboard": ["tensorboard>=2.19"],
        "trackio": ["trackio>=0.20"],
        "wandb": ["wandb>=0.20"],
        # the API reference: python docs/api.py
        "docs": ["pdoc>=15"],
        # peers of the bench: whichever is not there is named in its table and left out
        "bench": ["brotli>=1.1", "liger-kernel>=0.5", "gemlite>=0.4", "torchao>=0.9"],
        # compressors beside a score; zpaq, lrzip and bzip3 are programs of their own
        "peers": ["brotli>=1.1", "pyppmd>=1.1"],
        # executors of `pgolf study` beside this machine's own cores
        "slurm": ["submitit>=1.5"],
        "ray": ["ray>=2.40"],
    },
)
