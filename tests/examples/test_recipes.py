"""The recipes, as far as they can be checked without a cloud and without a GPU."""

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from pgolf.cli.flags import RunFlags
from pgolf.cli.parse import flags_of
from pgolf.run import STAGES

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes"
SHELL = sorted(RECIPES.glob("*.sbatch"))
SKY = sorted(RECIPES.glob("*.yaml"))


def blocks(path):
    """The shell parts of a SkyPilot file: what is indented below `setup: |` and `run: |`."""
    found = re.findall(r"^(?:setup|run): \|\n((?:  .*\n)+)", path.read_text(), re.M)
    return ["".join(line[2:] for line in block.splitlines(keepends=True)) for block in found]


def commands(text):
    """The words behind `pgolf` or `-m pgolf.run` in each command."""
    for line in text.replace("\\\n", " ").splitlines():
        found = re.search(r"(?:^|\|\| |srun )(?:pgolf|torchrun .*?-m pgolf\.run|python -m pgolf\.run) (.*)$", line.strip())
        if found:
            yield shlex.split(re.sub(r"\$\{DATA:\+(.*?)\}", r"\1", found[1]).replace("$resume", "--resume"))


@pytest.mark.parametrize("path", SHELL, ids=lambda path: path.name)
def test_batch_files_are_valid_shell(path):
    done = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", SKY, ids=lambda path: path.name)
def test_the_shell_parts_of_skypilots_files_are_valid(path):
    setup, run = blocks(path)
    for part in (setup, run):
        assert subprocess.run(["bash", "-n"], input=part, text=True, capture_output=True).returncode == 0
    assert {line.split(":")[0] for line in path.read_text().splitlines() if re.match(r"\w+:", line)} == {
        "name", "resources", "workdir", "envs", "file_mounts", "setup", "run",
    }  # fmt: skip


@pytest.mark.parametrize("path", [*SHELL, *SKY], ids=lambda path: path.name)
def test_every_command_and_flag_is_one_of_pgolf(path):
    texts = blocks(path) if path.suffix == ".yaml" else [path.read_text()]
    found = [words for text in texts for words in commands(text)]
    known = {*flags_of(RunFlags)}
    assert found
    for stage, *words in found:
        if stage == "data":
            from pgolf.cli.data import Options

            assert {word for word in words if word.startswith("--")} <= set(flags_of(Options))
        else:
            assert stage in STAGES or stage in known, stage
            assert {word for word in words if word.startswith("--")} <= known


def test_eight_gpus_are_eight_processes():
    for path in (RECIPES / "slurm-8gpu.sbatch", RECIPES / "sky-8gpu.yaml"):
        text = path.read_text()
        assert "--nproc-per-node 8" in text and re.search(r"gpus-per-node=8|H100: 8", text)


def test_the_image_copies_what_there_is_and_what_the_package_needs():
    copied = re.findall(r"^COPY (.*) \S+$", (RECIPES / "Containerfile").read_text(), re.M)
    names = {name for line in copied for name in line.split()}
    assert all((ROOT / name).exists() for name in names)
    assert names >= {"setup.py", "README.md", "kernels", "pgolf", "constraints.txt"}


def test_every_recipe_is_in_the_list():
    text = (RECIPES / "README.md").read_text()
    assert all(f"`{path.name}`" in text for path in RECIPES.iterdir() if path.name != "README.md")


def test_the_notebook_runs(tmp_path, monkeypatch, capsys):
    """Its cells in order, with a run of two steps in the place of the whole one."""
    cells = json.loads((RECIPES / "quick.ipynb").read_text())["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert sum("OPTIONS = " in source for source in sources) == 1
    monkeypatch.chdir(tmp_path)
    known = {}
    for source in sources:
        exec(compile(source, "quick.ipynb", "exec"), known)
        if "OPTIONS = " in source:
            known["OPTIONS"] += ["--scale", "tiny", "--steps", "2", "--evaluation.max-tokens", "512"]
    assert (tmp_path / "runs/notebook/report.html").exists() and "srcdoc" in known["shown"]
    assert known["summary"].main_score.bpb > 0
