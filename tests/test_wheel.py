"""What a wheel holds."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def files(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts}


def test_every_source_and_every_file_beside_it_is_packed(tmp_path):
    pytest.importorskip("setuptools")
    command = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    packed = files(tmp_path)
    ours = {Path("pgolf") / path for path in files(ROOT / "pgolf")}
    assert packed == ours | {Path("pgolf/kernels") / path for path in files(ROOT / "kernels")}
    assert {path.suffix for path in packed} >= {".py", ".toml", ".css", ".js", ".typed"}
