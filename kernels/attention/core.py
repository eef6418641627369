"""Which implementation computes the attention itself, and the ones that are not of this package.

Every function here takes q (B, T, H, d) and k, v (B, T, Hkv, d) and returns y (B, T, H, d), without XSA and gate.
"""

import functools
import importlib
import importlib.machinery
import importlib.util
import math
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from pgolf.kernels.launch import capability_of, nearest

# Best first, per capability; chosen by reasoning, unmeasured. On Hopper the backward of FlashAttention-3 and of cuDNN is far
# enough ahead to pay for the separate pass of XSA; on Ampere and Blackwell FlashAttention-2 is not, once XSA and documents
# (whose empty tiles it launches, knowing no longer bound than T) are counted. SDPA comes last: it has no document mask of
# its own, and neither has cuDNN behind it, which therefore is for neither documents nor windows.
PREFERENCE = {
    80: ("triton", "fa2", "sdpa"),
    90: ("fa3", "cudnn", "triton", "fa2", "sdpa"),
    100: ("triton", "fa2", "sdpa"),
}
FLASH = {
    "fa3": "FlashAttention-3: either flash_attn_interface, or Hugging Face's kernels and its kernels-community/flash-attn3",
    "fa2": "FlashAttention-2: pip install flash-attn",
}
# Up to this length a CPU that multiplies 16-bit numbers is faster with T x T scores than with its SDPA, which computes in
# float32.
DENSE_LENGTH = 512
LOADED: dict[str, ModuleType] = {}


def choose_core(capability: int, dtype: torch.dtype, head_dim: int, installed: Iterable[str], masked: bool = False) -> str:
    """The first entry of `PREFERENCE` that is installed and takes this dtype and head dim, and documents or a window where
    `masked`."""
    installed = set(installed) - ({"cudnn"} if masked else set())
    return next(core for core in nearest(PREFERENCE, capability) if core in installed and usable(core, dtype, head_dim))


def usable(core: str, dtype: torch.dtype, head_dim: int) -> bool:
    """Does this core take such tensors on a GPU?"""
    if core == "triton":
        return dtype in (torch.float32, torch.float16, torch.bfloat16) and head_dim in (16, 32, 64, 128)
    if core == "cudnn":
        return dtype in (torch.float16, torch.bfloat16) and head_dim % 8 == 0 and head_dim <= 128
    if core in FLASH:
        return dtype in (torch.float16, torch.bfloat16) and head_dim % 8 == 0 and head_dim <= 256
    return True


def best_core(q: Tensor, masked: bool = False) -> str:
    """The core that `attention` uses for such a q when it is asked for none; `masked`: with documents or a window."""
    if q.device.type != "cuda":
        return "dense" if q.dtype in (torch.bfloat16, torch.float16) and q.shape[1] <= DENSE_LENGTH else "sdpa"
    return choose_core(capability_of(q.device), q.dtype, q.shape[3], installed_cores().split(), masked)


def _constant(form: Any) -> Any:
    """A compiled graph cannot trace an import: what is marked like this runs while it is traced, and its answer becomes a
    constant of it. The attribute is what torch.compiler.assume_constant_result sets; calling that would import the compiler
    here and now."""
    form._dynamo_marked_constant = True
    return form


@_constant
def installed_cores() -> str:
    """The cores that this machine has, in one string: a list would be no constant of a compiled graph."""
    cudnn = " cudnn" if torch.backends.cudnn.is_available() else ""
    return "triton sdpa" + cudnn + "".join(f" {core}" for core in FLASH if flash_module(core) is not None)


@_constant
def _load_flash(core: str) -> bool:
    module = flash_module(core)
    if module is None:
        raise ImportError(f"attention: core={core!r} needs {FLASH[core]}; core=None takes the best core that is installed")
    LOADED[core] = module
    return True


@functools.cache
def flash_module(core: str) -> ModuleType | None:
    """The module that has FlashAttention's functions, or None where it is not installed."""
    if core == "fa2":
        return importlib.import_module("flash_attn") if importlib.util.find_spec("flash_attn") else None
    if importlib.util.find_spec("flash_attn_interface"):
        return importlib.import_module("flash_attn_interface")
    try:
        return hugging_face_kernels().get_kernel("kernels-community/flash-attn3")
    except Exception:  # not installed, no network, or no build for this machine: whichever it is, there is no such core.
        return None


def hugging_face_kernels() -> Any:
    """Hugging Face's package `kernels`. In a checkout this repository's own folder of that name comes first on the path,
    so the path is searched without the folder that holds it."""
    own = Path(__file__).resolve().parents[1]
    is_own = lambda module: Path(getattr(module, "__file__", None) or "/").resolve().parent == own
    if "kernels" in sys.modules and not is_own(sys.modules["kernels"]):
        return sys.modules["kernels"]
    elsewhere = [entry for entry in sys.path if (Path(entry or ".") / "kernels").resolve() != own]
    spec = importlib.machinery.PathFinder.find_spec("kernels", elsewhere)
    if spec is None or spec.loader is None:
        raise ImportError("Hugging Face's kernels is not installed")
    module = importlib.util.module_from_spec(spec)
    sys.modules["kernels"] = module
    spec.loader.exec_module(module)
    return module


def flash(core: str, q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor | None, window: int | None, scale: float) -> Tensor:
    """FlashAttention-2 (arXiv:2307.08691) or -3 (arXiv:2407.08608), by their own packages."""
    _load_flash(core)
    options: dict[str, Any] = {
        "softmax_scale": scale,
        "causal": True,
        "window_size": (-1 if window is None else window - 1, 0),
    }
    if cu_seqlens is None:
        out = LOADED[core].flash_attn_func(q, k, v, **options)
        return out[0] if isinstance(out, tuple) else out
    # tokens beyond the last document form one more, so that nothing is left unwritten.
    length = q.shape[1]
    bounds = torch.cat([cu_seqlens, cu_seqlens.new_full((1,), length)])
    out = LOADED[core].flash_attn_varlen_func(
        q[0], k[0], v[0],
        cu_seqlens_q=bounds, cu_seqlens_k=bounds, max_seqlen_q=length, max_seqlen_k=length, **options,
    )  # fmt: skip
    return (out[0] if isinstance(out, tuple) else out)[None]


def sdpa(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor | None, window: int | None, scale: float) -> Tensor:
    """torch's scaled_dot_product_attention; with documents or a window it builds a (T, T) mask. On a CPU documents are taken
    one by one instead, unless a graph is traced, which cannot know their number."""
    if cu_seqlens is not None and q.device.type == "cpu" and not torch.compiler.is_compiling():
        edges = sorted({*cu_seqlens.tolist()})
        spans = zip(edges, edges[1:], strict=False)
        parts = [sdpa(q[:, a:b], k[:, a:b], v[:, a:b], None, window, scale) for a, b in spans]
        return torch.cat([*parts, torch.zeros_like(q[:, edges[-1] :])], 1)
    mask = None if cu_seqlens is None and window is None else _same_document(q.shape[1], cu_seqlens, window, q.device)
    # the spelled-out condition gives a plain bool while a graph with symbolic shapes is traced.
    y = torch.nn.functional.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2),
        attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=True if q.shape[2] != k.shape[2] else False,
    )  # fmt: skip
    return y.transpose(1, 2)


def cudnn(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """The same with cuDNN's kernels first; torch takes its others where cuDNN refuses."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    others = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    with sdpa_kernel([SDPBackend.CUDNN_ATTENTION, *others], set_priority=True):
        return sdpa(q, k, v, None, None, scale)


def dense(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor | None, window: int | None, scale: float) -> Tensor:
    """Two batched products around a softmax over (T, T) scores in q's dtype."""
    batch, length, heads, dim = q.shape
    groups, share = k.shape[2], heads // k.shape[2]
    visible = _same_document(length, cu_seqlens, window, q.device)
    hidden = torch.zeros(length, length, dtype=q.dtype, device=q.device).masked_fill(~visible, -math.inf)
    # the heads that share keys stand below each other, so that one product serves them all
    rows = q.unflatten(2, (groups, share)).permute(0, 2, 3, 1, 4).reshape(batch * groups, share * length, dim)
    keys, values = (x.transpose(1, 2).reshape(batch * groups, length, dim) for x in (k, v))
    scores = torch.baddbmm(hidden.repeat(share, 1), rows, keys.mT, alpha=scale)
    y = scores.softmax(-1) @ values
    return y.view(batch, groups, share, length, dim).permute(0, 3, 1, 2, 4).reshape(q.shape)


def _same_document(length: int, cu_seqlens: Tensor | None, window: int | None, device: torch.device) -> Tensor:
    """As `reference.visible`, but tokens beyond the last document form one more, so that no row is empty."""
    position = torch.arange(length, device=device)
    mask = position[None, :] <= position[:, None]
    if window is not None:
        mask = mask & (position[:, None] - position[None, :] < window)
    if cu_seqlens is not None:
        document = torch.searchsorted(cu_seqlens, position.int(), right=True)
        mask = mask & (document[:, None] == document[None, :])
    return mask
