"""Attention and XSA on a CPU: the reference against loops over tokens, every core against the reference, the choice of
a core and of tiles, and what the compiler and torch's own checks say of the registered operators."""

import itertools
import math
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from pgolf.kernels.attention import attention, launch, reference, xsa
from pgolf.kernels.attention import core as cores
from tests.kernels.compare import assert_close


def inputs(batch=1, length=13, heads=4, kv_heads=2, dim=8, dtype=torch.float64, gate=True):
    def random(*shape):
        return torch.randn(*shape, dtype=dtype, requires_grad=True)

    q, k, v = (random(batch, length, count, dim) for count in (heads, kv_heads, kv_heads))
    return q, k, v, random(batch, length, heads) if gate else None


def boundaries(*lengths):
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)


OPTIONS = {
    "plain": {},
    "xsa": {"xsa": True},
    "scale": {"scale": 0.7},
    "window": {"window": 3},
    "documents-tail": {"cu_seqlens": boundaries(1, 0, 5, 4)},
    "all": {"xsa": True, "cu_seqlens": boundaries(0, 6, 1, 5), "window": 4, "scale": 0.5},
}
EVERY_OPTION = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
GATES = pytest.mark.parametrize("gate", [False, True], ids=["plain", "gate"])


def by_hand(q, k, v, gate, *, xsa=False, cu_seqlens=None, window=None, scale=None):
    """Token by token and head by head, as the definition reads."""
    batch, length, heads, dim = q.shape
    edges = [0, length] if cu_seqlens is None else cu_seqlens.tolist()
    out = torch.zeros_like(q)
    for b, h, (begin, end) in itertools.product(range(batch), range(heads), itertools.pairwise(edges)):
        g = h // (heads // k.shape[2])
        for t in range(begin, end):
            first = begin if window is None else max(begin, t - window + 1)
            scores = k[b, first : t + 1, g] @ q[b, t, h] * (scale or dim**-0.5)
            y = scores.softmax(0) @ v[b, first : t + 1, g]
            if xsa:
                own = v[b, t, g] / v[b, t, g].norm().clamp_min(1e-12)
                y = y - (y @ own) * own
            out[b, t, h] = y * (1 if gate is None else gate[b, t, h])
    return out


@EVERY_OPTION
@GATES
def test_reference_against_the_definition(options, gate):
    q, k, v, gate = (None if x is None else x.detach() for x in inputs(gate=gate))
    assert_close(reference.attention(q, k, v, gate=gate, **options), by_hand(q, k, v, gate, **options), 1e-12)


@EVERY_OPTION
@GATES
@pytest.mark.parametrize("core", ["triton", "sdpa", "dense", None])
def test_cores_and_gradients_equal_the_reference(core, options, gate):
    arguments = inputs(gate=gate)
    q, k, v, gate = arguments
    wanted = attention(q, k, v, gate=gate, core="reference", **options)
    found = attention(q, k, v, gate=gate, core=core, **options)
    assert_close(found, wanted, 1e-12)
    weight, leaves = torch.randn_like(wanted), [x for x in arguments if x is not None]
    gradients = (torch.autograd.grad(out, leaves, weight) for out in (found, wanted))
    for name, one, other in zip(("dq", "dk", "dv", "dgate"), *gradients, strict=False):
        assert_close(one, other, 1e-11, name)


@pytest.mark.parametrize("core", ["reference", "triton", "sdpa", "dense"])
def test_tail_is_zero_and_passes_nothing_back(core):
    q, k, v, gate = inputs()
    out = attention(q, k, v, gate=gate, xsa=True, cu_seqlens=boundaries(4, 3), core=core)
    assert out[:, 7:].eq(0).all() and out[:, :7].ne(0).any()
    for gradient in torch.autograd.grad(out.sum(), (q, k, v, gate)):
        assert gradient[:, 7:].eq(0).all() and gradient[:, :7].ne(0).any()


@pytest.mark.parametrize("core", ["reference", "triton", "sdpa", "dense"])
def test_first_tokens_and_zero_values(core):
    """Alone with itself a token has y = v, so XSA leaves nothing; with v = 0 there is no direction to remove."""
    q, k, v, _ = inputs(gate=False)
    v.data[:, 5] = 0
    out = attention(q, k, v, xsa=True, cu_seqlens=boundaries(1, 1, 11), core=core)
    assert out[:, :3].abs().max() < 1e-12
    assert torch.equal(out[:, 5], attention(q, k, v, cu_seqlens=boundaries(1, 1, 11), core=core)[:, 5])
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(out.sum(), (q, k, v)))


@pytest.mark.parametrize("core", ["reference", "triton", "sdpa", "dense"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_dtypes(core, dtype):
    q, k, v, gate = inputs(2, 33, 4, 2, 16, dtype)
    out = attention(q, k, v, xsa=True, gate=gate, core=core)
    wanted = reference.attention(q.double(), k.double(), v.double(), xsa=True, gate=gate.double())
    assert out.dtype == dtype
    assert_close(out, wanted, 1e-5 if dtype == torch.float32 else 1e-2)
    for gradient, leaf in zip(torch.autograd.grad(out.sum(), (q, k, v, gate)), (q, k, v, gate), strict=True):
        assert gradient.dtype == dtype and gradient.shape == leaf.shape


@GATES
def test_gradcheck(gate):
    q, k, v, gate = inputs(length=5, heads=2, kv_heads=1, dim=4, gate=gate)
    leaves = [x for x in (q, k, v, gate) if x is not None]

    def fused(q, k, v, gate=None):
        return attention(q, k, v, gate=gate, xsa=True, window=3, core="triton")

    assert torch.autograd.gradcheck(fused, leaves)
    assert torch.autograd.gradcheck(lambda *x: xsa(x[0], x[1], *x[3:]), leaves[:1] + leaves[2:3] + leaves[1:2] + leaves[3:])


@GATES
def test_xsa_alone(gate):
    """Orthogonal to the token's own value; and where |v| is below eps, the clamped quotient and its gradient."""
    y, _, v, gate = inputs(gate=gate)
    z = xsa(y, v, gate)
    assert (z * v.repeat_interleave(2, 2)).sum(-1).abs().max() < 1e-12
    leaves = [x for x in (y, v, gate) if x is not None]
    for eps in (1e-12, 2.5):
        found, wanted = xsa(*leaves, eps=eps), reference.exclude(*leaves, eps=eps)
        assert_close(found, wanted, 1e-12)
        weight = torch.randn_like(y)
        gradients = (torch.autograd.grad(out, leaves, weight) for out in (found, wanted))
        for one, other in zip(*gradients, strict=True):
            assert_close(one, other, 1e-12)
    clamped = v.square().sum(-1) < 2.5**2
    assert clamped.any() and not clamped.all()


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 3e-6), (torch.bfloat16, 1e-2)], ids=str)
@pytest.mark.parametrize("heads, kv_heads, dim", [(6, 2, 20), (3, 3, 7)])
@GATES
def test_xsa_in_single_precision(gate, heads, kv_heads, dim, dtype, tolerance, poisoned_memory):
    """More than one span of tokens, not all of them full; and two tokens whose value is as good as nothing."""
    y, _, v, gate = inputs(2, 700, heads, kv_heads, dim, dtype, gate)
    with torch.no_grad():
        v[1, -1], v[0, 3] = 0, 1e-13
    leaves = [x for x in (y, v, gate) if x is not None]
    exact = [x.detach().double().requires_grad_() for x in leaves]
    found, wanted, weight = xsa(*leaves), reference.exclude(*exact), torch.randn_like(y)
    assert found.dtype == dtype
    assert_close(found.double(), wanted, tolerance)
    gradients = (torch.autograd.grad(out, of, weight.to(out.dtype)) for out, of in ((found, leaves), (wanted, exact)))
    for one, other in zip(*gradients, strict=True):
        assert one.dtype == dtype
        # beside the nearly empty value's gradient nothing else would be seen
        assert_close(one[0, 3].double(), other[0, 3], tolerance)
        one[0, 3] = other[0, 3] = 0
        assert_close(one.double(), other, tolerance)
    with torch.no_grad():
        assert xsa(y[:0], v[:0]).shape == y[:0].shape


@pytest.mark.parametrize("ragged", [False, True], ids=["dense", "ragged"])
@GATES
def test_opcheck(ragged, gate):
    q, k, v, gate = inputs(length=6, dtype=torch.float32, gate=gate)
    q, v = (x.detach().mT.contiguous().mT.requires_grad_() for x in (q, v))
    cu_seqlens = boundaries(4, 1)
    start, end = torch.ops.pgolf.document_bounds(cu_seqlens, 6) if ragged else (None, None)
    if ragged:
        torch.library.opcheck(torch.ops.pgolf.document_bounds, (cu_seqlens, 6))
    arguments, options = (q, k, v, gate, start, end), (3 if ragged else 0, 0.3, ragged)
    torch.library.opcheck(torch.ops.pgolf.attention, (*arguments, *options))
    with torch.no_grad():
        out, z, a, lse = torch.ops.pgolf.attention(*arguments, *options)
    plain = [None if x is None else x.detach() for x in arguments]
    saved = out if gate is None else z, a, lse
    torch.library.opcheck(torch.ops.pgolf.attention_backward, (torch.randn_like(q), *plain, *saved, *options))
    torch.library.opcheck(torch.ops.pgolf.xsa, (q, v, gate, 1e-12))
    torch.library.opcheck(torch.ops.pgolf.xsa_backward, (torch.randn_like(q), plain[0], plain[2], plain[3], 1e-12))


@pytest.mark.parametrize("core", ["triton", "sdpa", None])
@pytest.mark.parametrize("ragged", [False, True], ids=["dense", "ragged"])
def test_compiles_into_one_graph_of_any_length(core, ragged):
    def step(q, k, v, gate, cu_seqlens):
        more = {"cu_seqlens": cu_seqlens, "window": 5} if ragged else {}
        return attention(q * 2, k, v, xsa=True, gate=gate.sigmoid(), core=core, **more).square().sum()

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for length in (7, 12, 9):
        leaves = inputs(length=length, dtype=torch.float32)
        cu_seqlens = boundaries(3, length - 4)
        wanted = torch.autograd.grad(step(*leaves, cu_seqlens), leaves)
        for one, other in zip(torch.autograd.grad(compiled(*leaves, cu_seqlens), leaves), wanted, strict=True):
            assert_close(one, other, 1e-5)


def stand_in(answers_with_lse):
    """FlashAttention's two functions as they are called here, on torch's SDPA."""

    def flash_attn_func(q, k, v, *, softmax_scale, causal, window_size):
        assert causal and window_size[1] == 0
        y = cores.sdpa(q, k, v, None, None if window_size[0] < 0 else window_size[0] + 1, softmax_scale)
        return (y, None) if answers_with_lse else y

    def flash_attn_varlen_func(
        q, k, v, *, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale, causal, window_size
    ):
        assert causal and window_size[1] == 0 and max_seqlen_q == max_seqlen_k == q.shape[0]
        window = None if window_size[0] < 0 else window_size[0] + 1
        y = cores.sdpa(q[None], k[None], v[None], cu_seqlens_k, window, softmax_scale)
        last = cu_seqlens_q[-1]
        y = torch.where((torch.arange(q.shape[0]) < last)[:, None, None], y, math.nan)  # the rest stays unwritten
        return (y[0], None) if answers_with_lse else y[0]

    return types.SimpleNamespace(flash_attn_func=flash_attn_func, flash_attn_varlen_func=flash_attn_varlen_func)


@pytest.mark.parametrize(("core", "module"), [("fa3", "flash_attn_interface"), ("fa2", "flash_attn")])
@EVERY_OPTION
def test_flash_attention_is_called_as_it_expects(core, module, options, monkeypatch):
    made = stand_in(answers_with_lse=core == "fa3")
    monkeypatch.setattr(cores.importlib.util, "find_spec", lambda name: name == module or None)
    monkeypatch.setitem(sys.modules, module, made)
    cores.flash_module.cache_clear()
    try:
        assert core in cores.installed_cores()
        q, k, v, gate = inputs()
        wanted = attention(q, k, v, gate=gate, core="reference", **options)
        found = attention(q, k, v, gate=gate, core=core, **options)
        assert_close(found, wanted, 1e-12)
        weight = torch.randn_like(q)
        gradients = (torch.autograd.grad(out, (q, k, v, gate), weight) for out in (found, wanted))
        for one, other in zip(*gradients, strict=True):
            assert_close(one, other, 1e-11)

        def step(q, k, v):
            return attention(q, k, v, core=core, **options).sum()

        compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
        assert_close(compiled(q, k, v), step(q, k, v), 1e-12)
    finally:
        cores.flash_module.cache_clear()
        cores.LOADED.clear()
        torch.compiler.reset()


@pytest.mark.parametrize("core", ["fa2", "fa3"])
def test_an_absent_core_is_explained(core, monkeypatch):
    monkeypatch.setattr(cores, "flash_module", lambda name: None)
    q, k, v, _ = inputs(gate=False)
    with pytest.raises(ImportError, match="FlashAttention-"):
        attention(q, k, v, core=core)
    assert cores.installed_cores() == "triton sdpa"


def test_cudnn_is_for_whole_sequences_and_traces_into_one_graph():
    q, k, v, gate = inputs(dtype=torch.float32)
    wanted = attention(q, k, v, xsa=True, gate=gate, core="reference")
    assert_close(attention(q, k, v, xsa=True, gate=gate, core="cudnn"), wanted, 1e-5)
    step = lambda q, k, v: attention(q, k, v, xsa=True, core="cudnn").sum()
    assert_close(torch.compile(step, fullgraph=True, backend="aot_eager")(q, k, v), step(q, k, v), 1e-5)
    for options in ({"window": 3}, {"cu_seqlens": boundaries(13)}):
        with pytest.raises(ValueError, match="neither documents nor windows"):
            attention(q, k, v, core="cudnn", **options)


def test_choice_of_a_core():
    everything = ("sdpa", "fa2", "triton", "fa3", "cudnn")
    half = torch.bfloat16
    assert cores.choose_core(90, half, 64, everything) == "fa3"
    assert cores.choose_core(90, half, 64, ("sdpa", "triton")) == "triton"
    assert cores.choose_core(90, half, 64, ("sdpa", "triton", "cudnn")) == "cudnn"
    assert cores.choose_core(90, half, 64, ("sdpa", "triton", "cudnn"), masked=True) == "triton"
    assert [cores.choose_core(newer, half, 64, everything) for newer in (86, 89, 103, 120)] == ["triton"] * 4
    assert cores.choose_core(80, half, 64, everything) == cores.choose_core(89, half, 64, everything) == "triton"
    assert cores.choose_core(80, half, 96, everything) == "fa2"
    assert cores.choose_core(120, torch.float32, 128, everything) == "triton"
    assert cores.choose_core(90, torch.float64, 64, everything) == "sdpa"
    assert cores.choose_core(90, half, 100, everything) == "sdpa"


@pytest.mark.parametrize("capability", [75, 80, 86, 90, 100, 120])
@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("dim", [16, 64, 128])
def test_launch(capability, bits, dim):
    for choose in (launch.launch_attention_fwd, launch.launch_attention_bwd_q):
        tiles = choose(dim, bits, capability).tiles
        assert tiles["BM"] % tiles["BN"] == 0, "the diagonal of a query tile must be whole key blocks"
        assert tiles["BN"] >= 16
    tiles = launch.launch_attention_bwd_kv(dim, bits, capability).tiles
    assert tiles["BN"] % tiles["BM"] == 0, "the diagonal of a key tile must be whole query blocks"
    forward = launch.launch_attention_fwd(dim, bits, capability)
    if bits == 16 and capability >= 90:
        assert forward.tiles["BM"] == 128, "a smaller tile is limited by the L2 cache"
        assert forward.max_registers == (128 if capability == 90 and dim <= 64 else None)


def test_launch_of_the_streaming_kernels():
    assert launch.launch_xsa(64).tiles == {"BT": 64, "BD": 64}
    assert launch.launch_xsa(40).tiles == {"BT": 64, "BD": 64}
    assert launch.launch_attention_bwd_prepare(128).tiles == {"BT": 32}
    assert launch.launch_document_bounds().tiles == {"BT": 512}


def test_traffic():
    """One layer of the challenge: 48 sequences of 2048 tokens, 8 heads over 4, head dim 64, bfloat16."""
    tokens, pairs, shape = 98_304, 48 * 2048 * 2049 // 2, (8, 4, 64, 2)
    moved, flops = launch.traffic_attention_fwd(tokens, pairs, *shape)
    assert moved == 3 * tokens * 8 * 64 * 2 + 4 * tokens * 8 and round(flops / 1e9) == 206
    assert launch.traffic_attention_fwd(tokens, pairs, *shape, xsa=True)[0] - moved == 4 * tokens * 8
    both = launch.traffic_attention_bwd_kv(tokens, pairs, *shape)[1] + launch.traffic_attention_bwd_q(tokens, pairs, *shape)[1]
    assert both == 7 * flops // 2
    assert launch.traffic_xsa(tokens, *shape, "forward")[0] == 251_658_240
    assert launch.traffic_xsa(tokens, *shape, "backward")[0] == 402_653_184
    plain, excluded = (launch.traffic_attention_bwd_prepare(tokens, *shape, xsa=xsa)[0] for xsa in (False, True))
    assert plain < excluded


def test_bad_arguments_are_named():
    q, k, v, gate = inputs(dtype=torch.float32)
    two = torch.cat([q, q]), torch.cat([k, k]), torch.cat([v, v])
    for arguments, options, message in (
        ((q[0], k, v), {}, "q .B, T, H, d."),
        ((q, k, v[:, :3]), {}, "q .B, T, H, d."),
        ((q[:, :, :3], k, v), {}, "cannot share"),
        ((q, k.half(), v), {}, "one floating-point dtype"),
        ((q, k, v), {"gate": gate[..., :2]}, "gate must be"),
        ((q, k, v), {"cu_seqlens": boundaries(4).long()}, "int32"),
        (two, {"cu_seqlens": boundaries(4)}, "batch of one"),
        ((q, k, v), {"window": 0}, "sees nothing"),
        ((q, k, v), {"scale": -1.0}, "positive"),
        ((q, k, v), {"core": "fa9"}, "no core 'fa9'"),
    ):
        with pytest.raises(ValueError, match=message):
            attention(*arguments, **options)
    for arguments, message in (
        ((q, v[:, :3]), "multiple of Hkv"),
        ((q, v.half()), "one floating-point dtype"),
        ((q, v, gate[..., :1]), "gate must be"),
    ):
        with pytest.raises(ValueError, match=message):
            xsa(*arguments)


def test_import_brings_in_no_triton():
    code = "import sys, pgolf.kernels.attention, pgolf.kernels.rotary; assert not {'triton', 'numba'} & set(sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr


def test_shapes_in_torchs_order_get_a_hint():
    q, k, v = torch.zeros(2, 4, 13, 8), torch.zeros(2, 2, 13, 8), torch.zeros(2, 2, 13, 8)
    for call in (lambda: attention(q, k, v), lambda: xsa(q, v)):
        with pytest.raises(ValueError, match=r"\(B, H, T, d\), pass x.transpose\(1, 2\)"):
            call()
    with pytest.raises(TypeError, match="attention: k must be a torch.Tensor, not numpy's ndarray"):
        attention(q, k.numpy(), v)


def test_hugging_faces_kernels_is_found_from_a_checkout(tmp_path, monkeypatch):
    """The repository's own folder of that name comes first on the path, and may even have been imported."""
    own = Path(cores.__file__).parents[1]
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text("get_kernel = lambda name: name\n")
    monkeypatch.setattr(sys, "path", [str(own.parent), *sys.path])
    monkeypatch.setitem(sys.modules, "kernels", types.SimpleNamespace(__file__=str(own / "__init__.py")))
    with pytest.raises(ImportError, match="not installed"):
        cores.hugging_face_kernels()
    sys.path.append(str(tmp_path))
    assert cores.hugging_face_kernels().get_kernel("name") == "name"
    assert cores.hugging_face_kernels() is sys.modules["kernels"]
