"""What packaging says of the project, and the reference that is built from the docstrings."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pgolf

ROOT = Path(__file__).parents[1]


def test_one_version_everywhere():
    told = {
        "setup.py": re.search(r'version="(.*?)"', (ROOT / "setup.py").read_text())[1],
        "CITATION.cff": re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.M)[1],
        "CHANGELOG.md": re.search(r"^## .*?(\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(), re.M)[1],
    }
    assert told == dict.fromkeys(told, pgolf.__version__)


def test_the_metadata_is_complete(tmp_path):
    """As setuptools writes it, without building anything."""
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    text = (tmp_path / "pgolf.egg-info" / "PKG-INFO").read_text()
    head, _, body = text.partition("\n\n")
    assert {"Name: pgolf", "Requires-Python: >=3.11", "Description-Content-Type: text/markdown"} <= set(head.splitlines())
    assert re.search(r"^License(-Expression)?: MIT$", head, re.M) and "Classifier: Typing :: Typed" in head
    assert all(url.startswith("https://") for url in re.findall(r"^Project-URL: .*, (.*)$", head, re.M))
    assert body.startswith("# pgolf") and {"tensorboard", "trackio", "wandb", "hub", "docs"} <= set(
        re.findall(r"^Provides-Extra: (.*)$", head, re.M)
    )


def test_the_reference_is_built_from_docstrings(tmp_path):
    if importlib.util.find_spec("pdoc") is None:
        pytest.skip("needs pdoc: pip install -e '.[docs]'")
    command = [sys.executable, ROOT / "docs" / "api.py", "--out", tmp_path, "pgolf.summary"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "Warn" not in done.stderr, done.stderr
    page = (tmp_path / "pgolf" / "summary.html").read_text()
    assert "The predictor whose score is the run" in page and "peak_memory_bytes" in page
    assert not re.search(r'(src|href)="https?://', page.replace("https://pdoc.dev", ""))
