"""The decoder against the parallel form, and what a compressor relies on: the same bits however tokens arrive."""

import dataclasses

import numpy as np
import pytest
import torch

from pgolf.model import Decoder
from pgolf.model.decoder import step as module
from tests.model.common import EVERYTHING, LANES, SMALL, error, random_model, tokens

PLAIN = dataclasses.replace(
    SMALL, smear=False, bigram_buckets=0, value_embedding_layers=(), xsa_last=0, unet_skips=False, resid_mix=False,
    layer_scale=False,
)  # fmt: skip
CASES = {
    "small": SMALL,
    "everything": EVERYTHING,
    "everything, tied": dataclasses.replace(EVERYTHING, tied=True),
    "plain": PLAIN,
    "no rotation": dataclasses.replace(SMALL, rotary_dims=0),
    "one head, odd width": dataclasses.replace(SMALL, dim=13, heads=1, kv_heads=1, mlp_hidden=21, rotary_dims=4),
    "residual after a value embedding": dataclasses.replace(SMALL, value_residual=True, value_embedding_layers=(0, 1)),
    "hyper without resid_mix": dataclasses.replace(SMALL, resid_mix=False, hyper_layers=2),
    "recurrence at the end": dataclasses.replace(SMALL, recurrence=(4,), gated_attention=True),
    "lanes, loops and gates": LANES,
    "one pass": dataclasses.replace(LANES, loop_passes=1, smear=True, smear_bos=-1),
    "more with lanes": dataclasses.replace(LANES, value_residual=True, hyper_layers=2, bigram_buckets=37, tied=False),
    "slope": dataclasses.replace(SMALL, mlp_slope=0.0, softcap=2.0),
}


@pytest.mark.parametrize("case", CASES)
def test_decoder_is_the_parallel_form(case):
    """Windows longer than the reference length, several tiles of keys, and a part-filled last tile."""
    model = random_model(CASES[case]).eval()
    given = tokens(2, 140)
    with torch.no_grad():
        wanted = model.logits(given)
    decoder = Decoder(model, 2, 140)
    found = torch.stack([decoder.step(given[:, t]) for t in range(140)], 1)
    assert found.dtype == torch.float32
    assert error(found, wanted) < 1e-5


def test_the_length_sets_the_base():
    model = random_model(SMALL)
    given = tokens(1, 100)
    with torch.no_grad():
        wanted = model.logits(given)[:, 39]
    assert error(Decoder(model, 1, 100).prefill(given[:, :40]), wanted) < 1e-5
    assert error(Decoder(model, 1, 40).prefill(given[:, :40]), wanted) > 1e-3


@pytest.mark.parametrize("settings", [SMALL, EVERYTHING], ids=["small", "everything"])
def test_the_same_bits_however_tokens_arrive(settings):
    model = random_model(settings)
    given = tokens(3, 90)
    stepped = Decoder(model, 3, 90)
    steps = torch.stack([stepped.step(given[:, t]) for t in range(90)], 1)
    alone = Decoder(model, 1, 90)
    for row in range(3):
        alone.reset()
        assert torch.equal(alone.prefill(given[row : row + 1, :71]), steps[row, 70][None])
        assert torch.equal(alone.step(given[row : row + 1, 71]), steps[row, 71][None])
        assert torch.equal(alone.prefill(given[row : row + 1, 72:]), steps[row, 89][None])


def test_any_precision_decodes_in_float32():
    given = tokens(1, 30)
    for dtype in (torch.float64, torch.bfloat16):
        model = random_model(SMALL, dtype=dtype)
        exact = random_model(SMALL)
        with torch.no_grad():
            for target, source in zip(exact.parameters(), model.parameters(), strict=True):
                target.copy_(source)
            wanted = exact.logits(given)[:, -1]
        found = Decoder(model, 1, 30).prefill(given)
        assert found.dtype == torch.float32 and error(found, wanted) < 1e-5


def test_the_weights_are_those_of_its_start():
    model = random_model(SMALL)
    given = tokens(1, 10)
    decoder = Decoder(model, 1, 10)
    wanted = Decoder(model, 1, 10).prefill(given)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    assert torch.equal(decoder.prefill(given), wanted)


def test_what_it_refuses():
    model = random_model(SMALL)
    decoder = Decoder(model, 2, 5)
    decoder.prefill(tokens(2, 4))
    with pytest.raises(ValueError, match="4 of 5 tokens are taken, 2 more do not fit; start another one"):
        decoder.prefill(tokens(2, 2))
    decoder.step(tokens(2, 1)[:, 0])
    with pytest.raises(ValueError, match="5 of 5 tokens are taken"):
        decoder.step(tokens(2, 1)[:, 0])
    decoder.reset()
    for wrong in (torch.tensor([0, 61]), torch.tensor([-1, 0])):
        with pytest.raises(ValueError, match="a token is outside the vocabulary"):
            decoder.step(wrong)
    with pytest.raises(ValueError, match=r"tokens for 2 rows wanted, not \(3, 1\)"):
        decoder.step(torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match="batch 0 and length 5 must be at least 1"):
        Decoder(model, 0, 5)


def test_exponentials():
    x = np.concatenate([np.linspace(-40, 40, 10_001), [-1e300, -750, 0, 1e-300, 5e-17]])
    found = x.copy()
    module._exp(found, np.empty_like(found))
    wanted = np.exp(np.clip(x, -700, 700))
    assert np.abs(found / wanted - 1).max() < 1e-14
    assert np.float32(found[-4]) == 0
