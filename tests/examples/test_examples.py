"""The examples run as they stand, on a CPU."""

import importlib.util
from pathlib import Path

import torch
from safetensors.torch import save_file

from pgolf.config import at_scale, load_preset
from pgolf.model import build_model, submission_state

EXAMPLES = Path(__file__).parents[2] / "examples"


def loaded(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_gpt_learns(capsys):
    module = loaded("nanogpt")
    torch.manual_seed(0)
    losses = module.train(module.GPT(time=64), module.text_of_python(), 25, batch=4, time=64)
    assert losses[-1] < losses[0] - 1.0 and "nats a byte" in capsys.readouterr().out


def test_adapters_learn_through_packed_matrices(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    torch.manual_seed(0)
    trained, rounded, adapted = loaded("qlora").main(["--steps", "20", "--bits", "4", "--device", "cpu"], time=64)
    assert 0 < abs(rounded - trained) < 0.05 and adapted < rounded - 0.1
    assert len(capsys.readouterr().out.splitlines()[-1]) > 0


def test_the_gpt_is_ten_marked_lines_from_plain_torch():
    text = (EXAMPLES / "nanogpt.py").read_text()
    assert 5 <= sum("# <-" in line for line in text.splitlines()) <= 10


def test_the_gpts_gradients_are_those_of_the_plain_forms(monkeypatch):
    """The same network of references in float64."""
    from pgolf.kernels.attention.reference import attention
    from pgolf.kernels.cross_entropy.reference import cross_entropy_reference
    from pgolf.kernels.mlp.reference import mlp_reference
    from pgolf.kernels.rotary.reference import rotary

    module = loaded("nanogpt")
    torch.manual_seed(0)
    model = module.GPT(vocab=32, dim=32, layers=2, heads=2, kv_heads=1, time=16)
    tokens, targets = torch.randint(32, (2, 2, 16))
    model(tokens, targets).backward()
    found = [parameter.grad.double() for parameter in model.parameters()]
    plain = {"attention": attention, "cross_entropy": cross_entropy_reference, "mlp": mlp_reference, "rotary": rotary}
    for name, form in plain.items():
        monkeypatch.setattr(module, name, form)
    model = model.double()
    model.zero_grad()
    model(tokens, targets).backward()
    for one, other in zip(found, model.parameters(), strict=True):
        assert torch.allclose(one, other.grad, rtol=1e-3, atol=1e-5)


def test_a_checkpoint_is_imported(tmp_path, capsys):
    settings = at_scale(load_preset("pr549"), "tiny")
    path = tmp_path / "weights.safetensors"
    save_file(
        {name: tensor.contiguous() for name, tensor in submission_state(build_model(settings.model, seed=3)).items()}, path
    )
    assert loaded("import_checkpoint").main([str(path), "--scale", "tiny"]) == 0
    assert capsys.readouterr().out.count("the likeliest is") == 16
