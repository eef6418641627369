"""Adapters against weights with the product of their factors merged in, document by document."""

import dataclasses

import pytest
import torch

from pgolf.model import Adapters
from pgolf.model.blocks import Attention, AttentionBlock
from pgolf.model.parameters import ADAPTED
from tests.model.common import EVERYTHING, LANES, SHALLOW, SMALL, random_model, tokens

FREE = dataclasses.replace(EVERYTHING, recurrence=(), layers=4, value_embedding_layers=(2, 3))
SHAPES = {"q": (48, 48), "k": (24, 48), "v": (24, 48), "o": (48, 48), "up": (80, 48), "down": (48, 80), "head": (61, 48)}


def created(model, documents, rank, targets, **options):
    """In the network's own precision, float32 at least."""
    dtype = torch.promote_types(model.activation, torch.float32)
    return Adapters.create(model.settings, documents, rank, targets, dtype=dtype, **options)


def filled(adapters, seed=7):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for factor in adapters.parameters():
            factor.copy_(0.3 * torch.randn(factor.shape, generator=generator))
    return adapters


def merge(model, adapters, document):
    """The document's adapters added to the weights; without recurrence every executed layer has its own."""
    n = model.settings.layers
    places = {
        "q": (model.qo_bank, 0), "o": (model.qo_bank, n), "k": (model.kv_bank, 0), "v": (model.kv_bank, n),
        "up": (model.mlp_up_bank, 0), "down": (model.mlp_down_bank, 0),
    }  # fmt: skip
    head = model.tok_emb if model.lm_head is None else model.lm_head
    with torch.no_grad():
        for (site, layer), (a, b) in adapters.factors.items():
            target = head.weight if site == "head" else places[site][0][places[site][1] + layer]
            target += adapters.scale * b[document] @ a[document]


MATRICES = [site for site in ADAPTED if not site.endswith("_side")]


@pytest.mark.parametrize("target", [*MATRICES, "mlp", "all"])
def test_adapters_are_merged_weights(target):
    given = tokens(3, 14)
    model = random_model(FREE, dtype=torch.float64).eval()
    plain = model.logits(given)
    adapters = created(model, 3, 2, MATRICES if target == "all" else (target,), alpha=3.0)
    assert adapters.scale == 1.5
    torch.testing.assert_close(model.logits(given, adapters=adapters), plain)
    found = model.logits(given, adapters=filled(adapters))
    assert ((found - plain).abs().amax((1, 2)) > 1e-3).all()
    for document in range(3):
        merged = random_model(FREE, dtype=torch.float64).eval()
        merge(merged, adapters, document)
        torch.testing.assert_close(merged.logits(given)[document], found[document])
    chosen = torch.tensor([[13], [0], [5]])
    picked = model.logits(given, adapters=adapters, positions=chosen)
    torch.testing.assert_close(picked[:, 0], found[torch.arange(3), chosen[:, 0]])


@pytest.mark.parametrize("settings", [FREE, LANES], ids=["one lane", "lanes and loops"])
def test_adapters_beside_a_sublayer(settings, monkeypatch):
    """Against sublayers whose outputs the same terms are added to from outside, one document at a time."""
    model = random_model(settings, dtype=torch.float64).eval()
    given = tokens(2, 14)
    adapters = filled(created(model, 2, 3, ("attn_side", "mlp_side"), alpha=6.0))
    found = model.logits(given, adapters=adapters)

    def added(site, layer, document, u):
        a, b = adapters.factors[site, layer]
        return 2.0 * u @ a[document].T @ b[document].T

    for document in range(2):

        def with_attention(self, u, first_values, context, plain=Attention.forward, document=document):
            y, values = plain(self, u, first_values, context)
            return y + added("attn_side", context.layer.index, document, u), values

        def with_mlp(self, u, project, plain=AttentionBlock.mlp, document=document):
            return plain(self, u, project) + added("mlp_side", project.layer, document, u)

        with monkeypatch.context() as patch:
            patch.setattr(Attention, "forward", with_attention)
            patch.setattr(AttentionBlock, "mlp", with_mlp)
            wanted = model.logits(given[document : document + 1])
        torch.testing.assert_close(found[document : document + 1], wanted)
    assert ((found - model.logits(given)).abs().amax((1, 2)) > 1e-3).all()


def test_what_is_created():
    model = random_model(SMALL)
    adapters = created(model, 4, 3, ("q", "mlp", "head"), seed=2)
    assert {site for site, _ in adapters.factors} == {"q", "up", "down", "head"}
    assert {layer for site, layer in adapters.factors if site == "q"} == set(range(5))
    assert adapters.scale == 1.0 and len(adapters.parameters()) == 2 * (3 * 5 + 1)
    for (site, layer), (a, b) in adapters.factors.items():
        out, width = SHAPES[site]
        assert a.shape == (4, 3, width) and b.shape == (4, out, 3) and a.requires_grad and b.requires_grad
        assert (b == 0).all() and 0.5 * width**-0.5 < a.abs().max() <= width**-0.5
        assert torch.equal(a, adapters.initial[site, layer].expand_as(a))
    starts = torch.stack([adapters.initial["q", layer] for layer in range(5)])
    assert len(starts.flatten(1).unique(dim=0)) == 5
    again, other = (created(model, 1, 3, ("q", "mlp", "head"), seed=seed) for seed in (2, 3))
    assert torch.equal(again.initial["up", 4], adapters.initial["up", 4])
    assert not torch.equal(other.initial["up", 4], adapters.initial["up", 4])
    with pytest.raises(ValueError, match="no target 'w'; there are q, k, v, o, up, down, head, attn_side, mlp_side and mlp"):
        created(model, 1, 3, ("q", "w"))


def test_repeated_layers_have_adapters_of_their_own():
    model = random_model(EVERYTHING, dtype=torch.float64)
    adapters = created(model, 2, 2, ("v",))
    assert {layer for _, layer in adapters.factors} == set(range(7))
    given = tokens(2, 9)
    plain = model.logits(given)
    for layer in (2, 4):
        once = created(model, 2, 2, ("v",))
        with torch.no_grad():
            once.factors["v", layer][1].fill_(0.1)
        assert (model.logits(given, adapters=once) - plain).abs().max() > 1e-4


@pytest.mark.parametrize("operators", ["kernels", "reference"])
def test_only_adapters_learn_over_a_frozen_base(operators):
    # without the token gate, which hides part of its slope on purpose
    model = random_model(dataclasses.replace(SHALLOW, dtg=False), dtype=torch.float64).requires_grad_(False).eval()
    model.operators = operators
    adapters = filled(created(model, 2, 2, ADAPTED))
    given = tokens(2, 8)

    def loss():
        return model.logits(given, adapters=adapters).log_softmax(-1)[..., 3].mean()

    loss().backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    for factor in adapters.parameters():
        place = tuple(int(i) for i in torch.unravel_index(factor.grad.abs().argmax(), factor.shape))
        with torch.no_grad():
            factor[place] += 1e-5
            above = loss()
            factor[place] -= 2e-5
            slope = (above - loss()) / 2e-5
            factor[place] += 1e-5
        assert factor.grad[place].item() == pytest.approx(slope.item(), rel=1e-4)


def test_full_graph_with_adapters():
    model = random_model(SHALLOW).requires_grad_(False).eval()
    adapters = filled(created(model, 2, 2, ("q", "v", "up", "head")))
    given = tokens(2, 12)
    run = torch.compile(model.logits, fullgraph=True, dynamic=False, backend="aot_eager")
    found, wanted = run(given, adapters=adapters), model.logits(given, adapters=adapters)
    torch.testing.assert_close(found, wanted)
    gradients = [torch.autograd.grad(logits.square().mean(), adapters.parameters()) for logits in (found, wanted)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_bfloat16_base_with_float32_adapters():
    model = random_model(SMALL, dtype=torch.bfloat16)
    adapters = filled(created(model, 2, 2, ADAPTED))
    assert adapters.parameters()[0].dtype == torch.float32
    given = tokens(2, 12)
    exact = random_model(SMALL)
    found, wanted = model.logits(given, adapters=adapters), exact.logits(given, adapters=adapters)
    assert (found - wanted).norm() < 0.1 * wanted.norm() < (wanted - exact.logits(given)).norm()


def test_documents_must_match_the_batch():
    model = random_model(SMALL)
    with pytest.raises(ValueError, match="lora"):
        model.logits(tokens(3, 5), adapters=created(model, 2, 2, ("q",)))
