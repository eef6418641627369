import ast
import dataclasses
import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pgolf.artifact import code
from pgolf.artifact.errors import ArtifactError
from pgolf.artifact.export import Submission, export
from pgolf.artifact.pack import read_artifact
from pgolf.cli import pack
from pgolf.cli.export import Options as ExportOptions
from pgolf.cli.parse import parse
from pgolf.config import ArtifactSettings, Settings, load_preset, preset_names, read_toml, to_toml
from pgolf.data import write_shard
from pgolf.errors import UsageError
from pgolf.folder import RunFolder
from pgolf.run import main
from pgolf.summary import Audit
from tests import summaries
from tests.model.common import SMALL, random_model

# ---- the counted code


def test_the_readable_script_carries_every_source_as_it_is():
    settings = dataclasses.replace(Settings(), seed=7)
    script = code.readable_script(settings, "cpu")
    names: dict = {"__name__": "not main"}
    exec(compile(script, "train_gpt_readable.py", "exec"), names)
    files = names["FILES"]
    for path, text in code.needed_sources(settings).values():
        assert files[path] == text
    assert {"pgolf/run.py", "pgolf/kernels/__init__.py", "pgolf/training/loop.py", "pgolf/model/network.py"} <= files.keys()
    assert not any("report/page" in path or "artifact/export" in path for path in files)
    assert script == code.readable_script(dataclasses.replace(settings, seed=8), "cpu")
    readable = [line for line in script.splitlines() if line.startswith(("def ", "class "))]
    assert len(readable) > 300


@pytest.mark.parametrize("text", ["a = 1\n", "'''", "ends with '", "back\\", 'r"""x"""\n', "tab\tand ü\n", "'''\\\n'", ""])
def test_any_text_survives_as_a_literal(text):
    assert ast.literal_eval(code.literal(text)) == text


def module_level_imports(tree):
    """What runs when the module is imported: neither inside functions nor for type checkers."""
    waiting = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, (ast.FunctionDef, ast.Lambda)):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.ImportFrom):
            yield from ((node.module, alias.name) for alias in node.names)
        waiting += ast.iter_child_nodes(node)


def names_of(tree):
    """What a module binds at its top."""
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.ImportFrom):
            yield from (alias.asname or alias.name for alias in node.names)
        else:
            yield from (part.id for part in ast.walk(node) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store))


@pytest.mark.parametrize("preset", preset_names())
def test_no_carried_source_misses_another(preset):
    """Each name that is imported when a module is, is there; whichever rooms the settings leave out."""
    sources = code.needed_sources(load_preset(preset))
    trees = {name: ast.parse(text) for name, (_, text) in sources.items()}
    for name, tree in trees.items():
        for module, imported in module_level_imports(tree):
            if module.split(".")[0] == "pgolf":
                assert module in sources, f"{name} imports {module}"
                assert f"{module}.{imported}" in sources or imported in names_of(trees[module]), f"{name}: {module}.{imported}"


def test_rooms_are_carried_where_the_settings_enter_them():
    plain = Settings()
    settings = {
        "calibration": with_(plain, artifact=with_(plain.artifact, rounding="gptq")),
        "fitting": with_(plain, artifact=with_(plain.artifact, fit=True)),
        "decoder": with_(plain, artifact=with_(plain.artifact, rounding="gptq", calibration="generated")),
        "chunks": adapting(plain, "chunks"),
        "lora.op": adapting(plain, "lora"),
        "model.cache": adapting(plain, "lora"),
        "tilt": result(plain, "boost"),
        "ngrams": result(plain, "ngrams"),
        "predictors.ngram_backoff": result(plain, "ngram_backoff"),
        "ngram.backoff": result(plain, "ngram_backoff"),
        "bias": result(plain, "bias"),
    }
    for room, entering in settings.items():
        carried = lambda chosen, room=room: any(name.endswith(f".{room}") for name in code.needed_sources(chosen))
        assert carried(entering) and not carried(plain), room
    rooms = {name.rpartition(".")[0] for name in code.needed_sources(settings["lora.op"])}
    assert "pgolf.kernels.packed" in rooms  # on a GPU every run reads its matrices as codes
    assert not {"pgolf.report.html", "pgolf.evaluation.codec"} & rooms
    assert not any(name.startswith("pgolf.kernels.lora") for name in code.needed_sources(plain))


with_ = dataclasses.replace


def adapting(settings, method):
    evaluation = settings.evaluation
    return with_(settings, evaluation=with_(evaluation, adaptation=with_(evaluation.adaptation, method=method)))


def result(settings, name):
    evaluation = settings.evaluation
    return with_(settings, evaluation=with_(evaluation, mixer=with_(evaluation.mixer, honest=(name,))))


def test_a_room_that_is_not_carried_is_named(monkeypatch, capsys):
    def missing(words):
        raise ModuleNotFoundError("No module", name="pgolf.evaluation.predictors.tilt")

    monkeypatch.setattr("pgolf.run.dispatch", missing)
    assert main([]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "pgolf.evaluation.predictors.tilt" in said


def test_every_module_of_the_script_imports_without_the_rest(tmp_path):
    """As in a fresh environment: only the unpacked files, nothing that was left out, no installed package of ours."""
    sources = code.needed_sources(load_preset("pr688"))
    for path, text in sources.values():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text, encoding="utf-8")
    modules = [name for name in sources if not name.endswith((".gpu", "__main__"))]
    program = (
        "import importlib, sys, pgolf\n"
        f"assert pgolf.__file__.startswith({str(tmp_path)!r}), pgolf.__file__\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        f"strangers = [m.__file__ for n, m in sys.modules.items() if n.split('.')[0] == 'pgolf' and m.__file__"
        f" and not m.__file__.startswith({str(tmp_path)!r})]\n"
        "assert not strangers, strangers\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_requirements_are_what_the_sources_import():
    found = {line.split("==")[0].lower() for line in code.requirements(Settings(), "cpu")}
    assert {"torch", "numpy", "numba", "zstandard", "safetensors", "sentencepiece"} <= found
    assert not found & {"pgolf", "pytest", "matplotlib", "tyro", "rich"}


# ---- the folder


def finished_run(path, seed, settings=None, **score):
    """A run folder as the stages leave it, without their work."""
    settings = dataclasses.replace(settings or Settings(preset="quick", description="a test"), seed=seed)
    folder = RunFolder.create(path)
    folder.config.write_text(to_toml(settings))
    folder.log.write_text(f"log of seed {seed}\n")
    legal = summaries.score(bpb=1.2 + seed / 1000, loss=2.0 + seed / 500)
    folder.update_summary(
        preset="quick",
        seed=seed,
        train=summaries.train(seconds=50.0, limit=60.0, parts={"steps": 49.0, "rounding": 1.0}),
        artifact=summaries.artifact(model_bytes=5000 + seed, code_bytes=code.code_bytes(settings, "cpu")),
        score={
            "sliding": with_(legal, bpb=1.9),
            "plain": with_(legal, **score),
            "published": summaries.score(bpb=0.5, loss=1.0, legal=False),
        },
        main="plain",
        scoring=summaries.scoring(),
        device="x86_64 CPU, 2 threads",
        versions={"torch": "2.0"},
    )
    return folder


def export_of(*runs, out, baseline="", **about):
    export([run.path for run in runs], out, Submission(**about), baseline)


def test_the_folder_holds_what_was_measured(tmp_path, capsys):
    runs = [finished_run(tmp_path / f"r{seed}", seed) for seed in (1, 2, 3)]
    baseline = {"seed_results": {str(i): {"val_loss": 2.2 + i / 1000, "val_bpb": 1.3 + i / 1000} for i in range(3)}}
    (tmp_path / "base.json").write_text(json.dumps(baseline))
    out = tmp_path / "out"
    export_of(*runs, out=out, baseline=str(tmp_path / "base.json"), author="A", github_id="a")
    said = capsys.readouterr().out
    record = json.loads((out / "submission.json").read_text())
    script = (out / "train_gpt.py").stat().st_size
    assert record["bytes_code"] == script and record["bytes_total"] == 5003 + script == record["artifact_bytes_max"]
    assert f"{script:,}" in said and f"{5003 + script:,}" in said
    assert math.isclose(record["val_bpb"], 1.202) and math.isclose(record["val_bpb_std"], 0.001)
    assert record["seeds"] == [1, 2, 3] and record["seed_results"]["2"]["steps"] == 70
    assert (record["author"], record["github_id"], record["name"]) == ("A", "a", "quick")
    assert said.count("one-sided Welch") == 4 and "nats per byte" in said and "nats per token" in said
    readme = (out / "README.md").read_text()
    assert all(f"\n- C{n}, " in readme for n in (1, 2, 3, 4)) and "scored as `plain`" in readme and "| 2 | 2.00400 |" in readme
    assert (out / "train_seed3.log").read_text() == "log of seed 3\n"
    assert (out / "requirements.txt").read_text().splitlines() == code.requirements(Settings(), "cpu")


def test_the_audit_goes_with_the_score(tmp_path):
    """What is not earned, of each run that was audited; what was not audited says so."""
    runs = [finished_run(tmp_path / f"r{seed}", seed) for seed in (1, 2)]
    says = "At most 0.0003 bits per byte of this score are not earned (99%), from 2,000 replays."
    bound = {"bits_per_byte": 3e-4, "confidence": 0.99, "seed": 7, "says": says, "replays": 2000}
    audit = Audit(passed=False, failed=["R1"], tests=20, results=["plain"], seconds=60.0, bound=bound)
    RunFolder(tmp_path / "r2").update_summary(audit=audit)
    export_of(*runs, out=tmp_path / "out")
    record = json.loads((tmp_path / "out" / "submission.json").read_text())
    unearned = {name: bound[name] for name in ("bits_per_byte", "confidence", "seed", "says")}
    assert record["seed_results"]["2"]["audit"] == {"passed": False, "failed": ["R1"], "unearned": unearned}
    readme = (tmp_path / "out" / "README.md").read_text()
    assert "- Seed 1 was not audited.\n" in readme and f"- Audit of seed 2 FAILED (R1). {says}\n" in readme


def test_the_score_is_the_one_that_the_runs_name_not_the_best(tmp_path):
    """A predictor with fewer bits per byte than the main one, and just as legal, is not what is submitted."""
    runs = [finished_run(tmp_path / f"r{seed}", seed) for seed in (1, 2)]
    for run in runs:
        score = run.read_summary().score
        run.update_summary(score={**score, "lucky": with_(score["plain"], bpb=1.0, loss=1.7)})
    export_of(*runs, out=tmp_path / "out", baseline=",".join(str(run.path) for run in runs))
    record = json.loads((tmp_path / "out" / "submission.json").read_text())
    assert math.isclose(record["val_bpb"], 1.2015) and "scored as `plain`" in (tmp_path / "out" / "README.md").read_text()


def test_runs_that_do_not_belong_together_are_refused(tmp_path):
    first = finished_run(tmp_path / "1", 1)
    with pytest.raises(ArtifactError, match="same seed 1"):
        export_of(first, finished_run(tmp_path / "1b", 1), out=tmp_path / "o")
    other = dataclasses.replace(Settings(preset="quick", description="a test"), artifact=ArtifactSettings(matrix_bits=5))
    with pytest.raises(ArtifactError, match="two configurations.*matrix_bits"):
        export_of(first, finished_run(tmp_path / "2", 2, other), out=tmp_path / "o")
    stale = finished_run(tmp_path / "3", 3)
    stale.update_summary(artifact=with_(stale.read_summary().artifact, code_bytes=5))
    with pytest.raises(ArtifactError, match="pack and score it again"):
        export_of(stale, out=tmp_path / "o")
    with pytest.raises(ArtifactError, match="no legal score"):
        export_of(finished_run(tmp_path / "4", 4, legal=False), out=tmp_path / "o")
    otherwise = finished_run(tmp_path / "5", 5)
    otherwise.update_summary(main="sliding")
    with pytest.raises(ArtifactError, match="different main scores, plain and sliding"):
        export_of(first, otherwise, out=tmp_path / "o")
    assert not (tmp_path / "o").exists()


def test_an_unfinished_run_and_a_full_folder_are_refused(tmp_path, capsys):
    run = finished_run(tmp_path / "1", 1)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("kept")
    assert main(["export", "--out", str(tmp_path / "full"), str(run.path)]) == 1
    assert "is not empty" in capsys.readouterr().err
    run.update_summary(score={}, scoring=None)
    assert main(["export", "--out", str(tmp_path / "o"), str(run.path)]) == 1
    assert "stage score first" in capsys.readouterr().err


def test_runs_stand_before_or_behind_the_flags():
    for words in ("--out o a b", "a b --out=o"):
        assert parse(ExportOptions, words.split(), "export").runs == ("a", "b")
    for words in ("a", "a --out o b"):
        with pytest.raises(UsageError):
            parse(ExportOptions, words.split(), "export")


# ---- the stage that packs


class Data:
    """The little that packing wants of a dataset."""

    def __init__(self, folder):
        self.tokenizer_path = folder / "tokenizer"
        self.tokenizer_path.write_bytes(b"pieces" * 50)
        self.train_shards = [folder / "text_train_000000.bin"]
        write_shard(self.train_shards[0], np.arange(400, dtype=np.uint16) % SMALL.vocab_size)


@pytest.fixture
def trained(tmp_path, monkeypatch):
    def make(script=60_000, **artifact):
        if script:  # making it takes seconds
            monkeypatch.setattr(pack, "code_bytes", lambda *_: script)
        chosen = ArtifactSettings(small_tensor=500, compressor="entropy", **{"calibration_sequences": 6, **artifact})
        settings = dataclasses.replace(Settings(), model=SMALL, artifact=chosen)
        settings = dataclasses.replace(settings, training=dataclasses.replace(settings.training, sequence_length=32))
        folder = RunFolder.create(tmp_path / "run")
        folder.config.write_text(to_toml(settings))
        weights = random_model(SMALL).state_dict()
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder.weights)
        folder.update_summary(train=summaries.train())
        return folder

    monkeypatch.setattr(pack, "dataset_of", lambda *_: Data(tmp_path))
    return make


@pytest.mark.parametrize(("calibration", "counted"), [("train", True), ("generated", False)])
def test_calibration_counts_where_it_reads_training_data(trained, calibration, counted):
    folder = trained(rounding="gptq", calibration=calibration)
    for _ in range(2):
        assert pack.pack(folder, "cpu") == 0
        train = folder.read_summary().train
        assert ("calibration" in train.parts) == counted and train.parts["rounding"] > 0
        assert math.isclose(train.seconds, 10.0 + train.parts["rounding"] + train.parts.get("calibration", 0.0))


@pytest.mark.parametrize("setting", [{"gptq_embedding": True}, {"calibration_sequences": 2}, {"lqer_rank": 1}])
def test_what_packing_is_asked_for_reaches_the_file(trained, setting):
    folder = trained(rounding="gptq-sdclip")
    pack.pack(folder, "cpu")
    before = read_artifact(folder.artifact).state
    settings = read_toml(folder.config)
    asked = dataclasses.replace(settings.artifact, **setting)
    folder.config.write_text(to_toml(dataclasses.replace(settings, artifact=asked)))
    pack.pack(folder, "cpu")
    after = read_artifact(folder.artifact).state
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"tok_emb.weight"} if "gptq_embedding" in setting else changed


def test_packing_counts_the_code_and_fits_the_limit(trained, capsys):
    folder = trained(script=None, fit=True, limit=code.code_bytes(Settings(), "cpu") + 40_000)
    pack.pack(folder, "cpu")
    artifact = folder.read_summary().artifact
    script = code.code_bytes(read_toml(folder.config), "cpu")
    assert artifact.code_bytes == script > 10_000 and 0 <= artifact.margin < 1000
    file = folder.artifact.stat().st_size
    assert artifact.model_bytes == file - artifact.tokenizer_bytes
    assert f"{artifact.total_bytes:,} bytes" in capsys.readouterr().out
    assert read_artifact(folder.artifact).model_settings == SMALL
