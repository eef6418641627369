import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pgolf.artifact.calibration import _by_decoder, _by_prefix, generated_batches, hessians, sample, training_batches
from pgolf.data import write_shard
from pgolf.model import unbank
from tests.model.common import EVERYTHING, SMALL, random_model


@pytest.fixture(scope="module")
def everything():
    return random_model(EVERYTHING).eval()


def tokens(rows, length, seed=0):
    return torch.randint(SMALL.vocab_size, (rows, length), generator=torch.Generator().manual_seed(seed))


def inputs_by_products(model, batch, monkeypatch):
    """Every F.linear of the plain form of the network, told apart by the weight it uses."""
    names = {id_of(weight): name for name, weight in unbank(model.state_dict()).items()}
    sums: dict = {}
    linear = F.linear

    def watching(x, weight, bias=None):
        name = names.get(id_of(weight))
        if name and bias is None:
            rows = x.reshape(-1, x.shape[-1]).double()
            total, count = sums.get(name, (0, 0))
            sums[name] = (total + rows.T @ rows, count + len(rows))
        return linear(x, weight, bias)

    monkeypatch.setattr(F, "linear", watching)
    model.operators = "reference"
    with torch.no_grad():
        model.logits(batch)
    model.operators = "kernels"
    monkeypatch.setattr(F, "linear", linear)
    return {name: total / count for name, (total, count) in sums.items()}


def id_of(weight):
    return weight.data_ptr(), tuple(weight.shape)


def test_moments_are_those_of_every_matrix_inputs(everything, monkeypatch):
    """Repeated layers gather from both passes; the products themselves are the witnesses."""
    batch = tokens(3, 21)
    found = hessians(everything, [batch[:2], batch[2:]], head=True)
    expected = inputs_by_products(everything, batch, monkeypatch)
    # the fused MLP shows its products only in pieces; q stands for k and v
    assert {"blocks.2.attn.c_q.weight", "blocks.2.attn.proj.weight", "bigram.proj.weight", "lm_head.weight"} <= set(expected)
    for name, moment in expected.items():
        if name in found:
            assert torch.allclose(found[name].double(), moment, rtol=1e-4, atol=1e-5 * float(moment.abs().max())), name
    for layer in range(EVERYTHING.layers):
        stem = f"blocks.{layer}."
        assert torch.equal(found[stem + "attn.c_k.weight"], found[stem + "attn.c_q.weight"])
        assert found[stem + "mlp.fc.weight"].shape == (48, 48) and found[stem + "mlp.proj.weight"].shape == (80, 80)
    assert found["ve_shared.proj.weight"].shape == (14, 14)


def test_the_mlps_moments_reproduce_its_output():
    """trace(W H W^T) is the mean square of what the down projection puts out."""
    model = random_model(SMALL).eval()
    outputs = []
    hook = model.input_hook
    assert hook is None
    seen = {}
    model.input_hook = lambda site, layer, x: seen.setdefault((site, layer), x.detach())
    batch = tokens(2, 16)
    with torch.no_grad():
        model.hidden(batch)
    model.input_hook = None
    found = hessians(model, [batch])
    for layer in range(SMALL.layers):
        up, down = model.mlp_up_bank[layer].detach(), model.mlp_down_bank[layer].detach()
        h = F.leaky_relu(F.linear(seen["up", layer], up), SMALL.mlp_slope).square()
        assert torch.allclose(h, seen["down", layer], rtol=1e-4, atol=1e-6)
        outputs.append(F.linear(h, down).flatten(0, 1).square().sum(1).mean())
        assert torch.isclose(torch.trace(down @ found[f"blocks.{layer}.mlp.proj.weight"] @ down.T), outputs[-1], rtol=1e-3)


def test_watching_changes_nothing_and_ends(everything):
    batch = tokens(2, 19)
    before = everything.logits(batch)
    everything.train()
    hessians(everything, [batch])
    assert everything.input_hook is None and everything.training
    everything.eval()
    assert torch.equal(everything.logits(batch), before)


def test_training_text_is_read_as_the_submissions_loader_gives_it(tmp_path):
    """A sequence takes length + 1 tokens of the stream, the last of which is only a target: sequence i begins at
    (length + 1) i."""
    write_shard(tmp_path / "text_train_000001.bin", np.arange(100, 150, dtype=np.uint16))
    write_shard(tmp_path / "text_train_000000.bin", np.arange(100, dtype=np.uint16))
    shards = [tmp_path / "text_train_000001.bin", tmp_path / "text_train_000000.bin"]
    batches = list(training_batches(shards, 6, 20, 4))
    assert [len(batch) for batch in batches] == [4, 2]
    assert torch.equal(torch.cat(batches), torch.stack([torch.arange(21 * i, 21 * i + 20) for i in range(6)]))
    assert torch.cat(list(training_batches(shards, 100, 20, 4))).shape == (7, 20)
    assert torch.cat(list(training_batches(shards, 100, 400, 4))).shape == (1, 150)


@pytest.mark.parametrize("length", [9, 40])
def test_both_ways_to_generate_see_the_same_probabilities(everything, length):
    """One with a cache on the CPU, one with whole prefixes on a GPU; 40 is beyond the rotary reference length."""
    batch = tokens(3, length)
    with torch.no_grad():
        pairs = list(zip(_by_decoder(everything, batch), _by_prefix(everything, batch), strict=True))
    assert len(pairs) == length - 1
    for first, second in pairs:
        assert torch.allclose(first, second, rtol=1e-3, atol=1e-3)


def test_generated_text_follows_the_model(everything):
    found = torch.cat(list(generated_batches(everything, 5, 30, 2, seed=3)))
    assert found.shape == (5, 30)
    assert torch.equal(found, torch.cat(list(generated_batches(everything, 5, 30, 4, seed=3))))
    assert not torch.equal(found, torch.cat(list(generated_batches(everything, 5, 30, 4, seed=4))))
    random = tokens(5, 30)
    with torch.no_grad():
        own = everything.loss(found[:, :-1], found[:, 1:])
        other = everything.loss(random[:, :-1], random[:, 1:])
    assert own < other - 0.2


def test_sampling_sharpens_and_covers():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.2]])).expand(100_001, 3)
    shares = sample(logits, torch.linspace(0, 1, 100_001, dtype=torch.float64)).bincount(minlength=3) / 100_001
    sharp = torch.tensor([0.5, 0.3, 0.2]) ** (1 / 0.8)
    assert torch.allclose(shares, sharp / sharp.sum(), atol=1e-4)
