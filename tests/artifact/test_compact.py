"""The counted script: it has all that it names, the same bytes each time, and computes what the package does."""

import ast
import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from pgolf.artifact import code, compact, constants
from pgolf.artifact.fold import Fold
from pgolf.artifact.merge import Merger, Unchecked
from pgolf.config import Settings, at_scale, load_preset, preset_names, read_toml
from tests.artifact.names import undefined_names

CASES = [*((preset, "cuda") for preset in preset_names()), ("quick", "cpu"), ("pr745", "cpu"), ("mamba", "cpu")]


@pytest.mark.parametrize(("preset", "device"), CASES)
def test_every_presets_script_compiles_and_has_all_that_it_names(preset, device):
    tree = ast.parse(compact.merged_module(load_preset(preset), device))
    assert undefined_names(tree) == set()
    imported = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert not any(name.split(".")[0] == "pgolf" for name in imported)
    assert not {"rich", "tyro", "matplotlib"} & {name.split(".")[0] for name in imported}
    top = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    assert ("triton" in top) == (device == "cuda")


def test_a_function_that_is_dropped_is_missed(monkeypatch):
    settings = load_preset("pr549")
    assert undefined_names(ast.parse(compact.merged_module(settings, "cpu"))) == set()
    real = compact.Emitter.__init__

    def without(self, merger: Merger):
        real(self, merger)
        name = lambda statement: getattr(statement, "name", "")
        self.statements = [(source, part) for source, part in self.statements if name(part) != "round_weights"]

    monkeypatch.setattr(compact.Emitter, "__init__", without)
    assert len(undefined_names(ast.parse(compact.merged_module(settings, "cpu")))) == 1


def test_a_list_that_grows_is_not_taken_for_empty():
    text = "def f(a):\n    b, c = ([], 0)\n    for d in a:\n        b.append(d)\n    if not b:\n        return\n    yield b"
    assert ast.unparse(Fold(Settings(), "cpu").visit(ast.parse(text))) == text


def test_an_attribute_that_is_always_none_is_folded_and_no_other():
    """The gate of #745, which quick has not."""
    settings = load_preset("quick")
    gated = replace(settings, model=replace(settings.model, gated_attention=True))
    assert "attn_gate" not in compact.merged_module(settings, "cpu")
    assert "attn_gate.weight" in compact.merged_module(gated, "cpu")


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("class A:\n    def __init__(self):\n        self.b = None", {"b": None}),
        (
            "class A:\n    def __init__(self, c):\n        self.b = None\n        self.d, self.b = (True, c.b)",
            {"b": None, "d": True},
        ),
        ("class A:\n    def __init__(self, c):\n        self.b = None\n        c.b = 3", {}),
        ("class A:\n    def __init__(self, c):\n        self.b = 0\n        c.b = False", {}),
        ("class A:\n    def __init__(self):\n        self.b = None\n        self.b += 1", {}),
        ("class A:\n    b: int = 3\n    def __init__(self):\n        self.b = None", {}),
        ("class A:\n    def __init__(self):\n        self.training = False", {}),
        ("class A:\n    def __init__(self):\n        self.b = None\n        setattr(self, 'b', 1)", {}),
    ],
)
def test_which_attributes_are_constants(text, left, monkeypatch):
    class Merged:
        strings = {"b"} if "'b'" in text else set()

    monkeypatch.setattr(constants, "execution_order", lambda merger: [None])
    monkeypatch.setattr(constants, "kept_statements", lambda merger, source: ast.parse(text).body)
    assert constants.constant_attributes(Merged()) == {f"attribute {name}": value for name, value in left.items()}


def test_messages_lose_their_advice_and_checks_of_the_calling_code_go():
    text = "def f(a):\n    if a:\n        raise ValueError('no')\n    elif a is 3:\n        b = a\n    else:\n"
    text += "        raise TypeError(a)\n"
    text += "    if b:\n        raise FileError(f'{a} is cut: {b} bytes; copy it')"
    inner, outer = (ast.unparse(Unchecked(name).visit(ast.parse(text))) for name in ("pgolf.model.parts", "pgolf.cli.run"))
    assert "ValueError" not in inner and "TypeError" not in inner and "b = a" in inner and "f'{a} is cut'" in inner
    assert "ValueError('no')" in outer and "copy" not in outer
    said = Unchecked("pgolf.cli.run").visit(ast.parse("a.say(f'over it: {b} of {c}; give more: --d')\na.status('done')"))
    assert ast.unparse(said) == "a.say(f'over it: {b} of {c}')"


def test_what_a_function_imports_is_carried_once_it_is_used():
    """Calibration by generated text is imported beside that by training text, and takes a decoder."""
    settings = load_preset("quick")
    generated = replace(settings, artifact=replace(settings.artifact, calibration="generated"))
    for chosen, carried in ((settings, False), (generated, True)):
        merger = compact.merged(chosen, "cpu")
        assert (("pgolf.artifact.calibration", "generated_batches") in merger.kept) == carried
        assert (("pgolf.model.decoder", "Decoder") in merger.kept) == carried


def test_modules_fold_alike_where_the_settings_they_ask_for_are_alike():
    """A preset's module is the same whether others have been merged before it or not."""
    fresh = "from pgolf.artifact.compact import merged_module; from pgolf.config import load_preset;"
    fresh += "print(merged_module(load_preset('pr549'), 'cpu'), end='')"
    alone = subprocess.run([sys.executable, "-c", fresh], capture_output=True, text=True, check=True).stdout
    for device in ("cuda", "cpu"):
        compact.merged_module(load_preset("pr745"), device)
    assert compact.merged_module(load_preset("pr549"), "cpu") == alone


def test_the_same_bytes_each_time_and_for_every_seed():
    settings = load_preset("pr549")
    program = (
        "from pgolf.artifact.compact import compact_script; from pgolf.config import load_preset; import hashlib;"
        "print(hashlib.sha256(compact_script(load_preset('pr549'), 'cpu')).hexdigest())"
    )
    digests = set()
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", program]
        digests.add(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    assert len(digests) == 1
    assert code.make_script(settings, "cpu") == code.make_script(replace(settings, seed=9), "cpu")
    assert len(code.make_script(settings, "cpu")) == code.code_bytes(settings, "cpu")


def test_squeezing_keeps_the_program():
    text = "def f(a, *, b=1):\n    if a in b and not (a - -1):\n        return 'x  y' if a else f'{a!r} {b}'\n"
    text += "    c, d = (1, 2)\n    d = (1 + c) * (3, 4)[0]\n    e = ()\n    d, = (sum((f for f in (c, d))),)\n"
    text += "    c = sum((f for f in b), 2) if (d := (1, 2)) else print(((1, 2)))\n"
    text += "    e, f = (g for g, h in d)\n    e = (lambda f, g: f)\n    e = ((h := 1), 2)\n    return (c, [1, 2][0])\n"
    found = compact.squeezed(text)
    assert ast.dump(ast.parse(found)) == ast.dump(ast.parse(text)) and len(found) < len(text)


def test_what_a_scripts_coder_writes_it_reads(tmp_path):
    """Of quick's module alone, in a process of its own: it defines operators of the names that the package's have."""
    emitter = compact.Emitter(compact.merged(load_preset("quick"), "cpu"))
    (tmp_path / "merged.py").write_text(compact.squeezed(emitter.text()))
    of_coder = lambda name: "merged." + emitter.globals["pgolf.artifact.coder", name]
    program = "import merged, numpy as np\ncodes = [np.random.default_rng(3).integers(-9, 10, (12, 40)).astype(np.int8)]\n"
    program += f"outlines = [{of_coder('Outline')}('matrix', (12, 40), 31)]\n"
    program += f"data = {of_coder('encode_matrices')}(outlines, codes)\n"
    program += f"assert 100 < len(data) < 480, len(data)\n(again,) = {of_coder('decode_matrices')}(data, outlines)\n"
    program += "assert (again == codes[0]).all()\n"
    environment = {**os.environ, "PYTHONPATH": "", "NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_script_gives_the_packages_score(tmp_path):
    """Far from the package: only the script, and what it requires."""
    settings = at_scale(load_preset("pr549"), "tiny")
    (tmp_path / "train_gpt.py").write_bytes(code.make_script(settings, "cpu"))
    words = "--steps 3 --seed 5 --device cpu --evaluation.seconds 3600 --evaluation.max-tokens 1024".split()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    theirs = [
        sys.executable,
        "-m",
        "pgolf.run",
        "--preset",
        "pr549",
        "--scale",
        "tiny",
        "--out",
        str(tmp_path / "package"),
        *words,
    ]
    ours = [sys.executable, str(tmp_path / "train_gpt.py"), "--out", str(tmp_path / "script"), *words]
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    for command, where, env in ((theirs, root, {**environment, "PYTHONPATH": root}), (ours, tmp_path, environment)):
        done = subprocess.run(command, cwd=where, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
    package, script = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("package", "script"))
    assert script["main"] == package["main"] and script["train"]["loss"] == package["train"]["loss"]
    for name, score in script["score"].items():
        assert score["nats"] == package["score"][name]["nats"], name
    assert script["artifact"]["model_bytes"] == package["artifact"]["model_bytes"]
    assert script["artifact"]["code_bytes"] == (tmp_path / "train_gpt.py").stat().st_size
    # the package counts the script that would be exported from this very run
    exported = code.make_script(read_toml(tmp_path / "package" / "config.toml"), "cpu")
    assert package["artifact"]["code_bytes"] == len(exported)
