"""Every configuration of the attention and XSA kernels that is compiled ahead of time, at the challenge's shape:
48 sequences of 2,048 tokens, 8 query heads over 4 key-value heads."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import triton

from pgolf.kernels.attention import gpu, launch
from pgolf.kernels.compile import NARROW, SERIALISED, Case
from pgolf.kernels.launch import Launch

BATCH, LENGTH, HEADS, KV_HEADS = 48, 2048, 8, 4
TOKENS, PAIRS = BATCH * LENGTH, BATCH * LENGTH * (LENGTH + 1) // 2
SHAPE = f"B={BATCH} T={LENGTH} H={HEADS} Hkv={KV_HEADS}"
# arguments that are not in q's dtype
FLOAT32 = ("p_a", "p_lse", "p_delta", "p_gate", "p_dgate")
INT32 = ("p_start", "p_end", "p_cu")
SCALARS = ("scale", "scale2", "floor")
# dK and dV stay in flight over the end of an iteration, and Triton 3.6 copies their registers meanwhile (C7515); it also
# gives each thread its own load of lse and delta
OF_TRITON_36 = {SERIALISED: "at every tiling that loads ahead", NARROW: "lse and delta are one number a row"}
BY_TRITON = OF_TRITON_36 if triton.__version__ < "3.7" else {}


@dataclass(frozen=True)
class Form:
    """What of an attention call changes its kernels; `ragged` is documents and a window together."""

    dtype: str = "bf16"
    dim: int = 64
    xsa: bool = False
    gate: bool = False
    ragged: bool = False

    @property
    def name(self) -> str:
        options = " xsa" * self.xsa + " gate" * self.gate + " documents window" * self.ragged
        return f"d={self.dim}{options} {self.dtype}"

    @property
    def bits(self) -> int:
        return 32 if self.dtype == "fp32" else 16

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return HEADS, KV_HEADS, self.dim, self.bits // 8

    @property
    def constants(self) -> dict[str, object]:
        return {"H": HEADS, "HKV": KV_HEADS, "D": self.dim}

    @property
    def edges(self) -> dict[str, object]:
        """What a kernel that walks over blocks of tokens also wants to know."""
        return {"DOCUMENTS": self.ragged, "WINDOW": self.ragged}

    def absent(self, *always: str) -> dict[str, object]:
        """Arguments that this form leaves out are None, as the launchers pass them."""
        names = [*always]
        names += [] if self.gate else ["p_gate", "p_dgate"]
        names += [] if self.xsa else ["p_a", "p_dv_own"]
        names += [] if self.ragged else ["p_start", "p_end"]
        return dict.fromkeys(names)


def _case(
    kernel: Any, name: str, dtype: str, constants: dict[str, object], chosen: Launch, traffic: tuple[int, int], **more: Any
) -> Case:
    """Types follow from the arguments' names."""
    constants = {key: value for key, value in constants.items() if key in kernel.arg_names}
    signature = {}
    for argument in kernel.arg_names:
        if argument in constants or argument in chosen.tiles:
            continue
        if argument.startswith("p_"):
            kind = "i32" if argument in INT32 else "fp32" if argument in FLOAT32 else dtype
            signature[argument] = f"*{kind}:16"
        else:
            signature[argument] = "fp32" if argument in SCALARS else "i32"
    more = {"max_registers": chosen.max_registers or 255, **more}
    return Case(kernel, name, signature, constants, chosen, SHAPE, *traffic, **more)


def forward(form: Form, capability: int) -> Case:
    constants = {**form.constants, **form.edges, "XSA": form.xsa, "GATE": form.gate}
    constants |= form.absent(*[] if form.gate else ["p_z"])
    chosen = launch.launch_attention_fwd(form.dim, form.bits, capability)
    traffic = launch.traffic_attention_fwd(TOKENS, PAIRS, *form.shape, form.xsa, form.gate)
    name = f"forward {form.name}"
    return _case(gpu.attention_fwd_kernel, name, form.dtype, constants, chosen, traffic, matmul=form.bits == 16)


def prepare(form: Form, capability: int) -> Case:
    constants = {**form.constants, "XSA": form.xsa, "GATE": form.gate}
    constants |= form.absent(*[] if form.xsa else ["p_v", "p_dv"], *[] if form.xsa or form.gate else ["p_dy"])
    chosen = launch.launch_attention_bwd_prepare(form.dim)
    traffic = launch.traffic_attention_bwd_prepare(TOKENS, *form.shape, form.xsa, form.gate)
    name = f"backward prepare {form.name}"
    return _case(gpu.attention_bwd_prepare_kernel, name, form.dtype, constants, chosen, traffic, max_registers=128)


def backward_kv(form: Form, capability: int) -> Case:
    constants = {**form.constants, **form.edges, "XSA": form.xsa, **form.absent()}
    chosen = launch.launch_attention_bwd_kv(form.dim, form.bits, capability)
    traffic = launch.traffic_attention_bwd_kv(TOKENS, PAIRS, *form.shape, form.xsa)
    name, more = f"backward kv {form.name}", {"matmul": form.bits == 16, "accepts": BY_TRITON}
    return _case(gpu.attention_bwd_kv_kernel, name, form.dtype, constants, chosen, traffic, **more)


def backward_q(form: Form, capability: int) -> Case:
    constants = {**form.constants, **form.edges, **form.absent()}
    chosen = launch.launch_attention_bwd_q(form.dim, form.bits, capability)
    traffic = launch.traffic_attention_bwd_q(TOKENS, PAIRS, *form.shape)
    name = f"backward q {form.name}"
    return _case(gpu.attention_bwd_q_kernel, name, form.dtype, constants, chosen, traffic, matmul=form.bits == 16)


def xsa(form: Form) -> Iterator[Case]:
    constants = {**form.constants, "GATE": form.gate, **form.absent()}
    chosen = launch.launch_xsa(form.dim)
    for direction, kernel in (("forward", gpu.xsa_fwd_kernel), ("backward", gpu.xsa_bwd_kernel)):
        traffic = launch.traffic_xsa(TOKENS, *form.shape, direction, form.gate)
        name = f"xsa {direction} {form.name}"
        yield _case(kernel, name, form.dtype, constants, chosen, traffic, max_registers=128)


def compile_cases(capability: int) -> list[Case]:
    """The challenge's shape plain, with XSA, and with everything; the other head dim; the other dtypes."""
    plain, excluded, everything = Form(), Form(xsa=True), Form(xsa=True, gate=True, ragged=True)
    wide, wide_everything = Form(dim=128, xsa=True, gate=True), Form(dim=128, xsa=True, gate=True, ragged=True)
    half = Form("fp16", xsa=True, ragged=True)
    exact = Form("fp32", xsa=True, gate=True, ragged=True)
    wide_exact = Form("fp32", 128, xsa=True, gate=True, ragged=True)
    cases = [
        *(make(plain, capability) for make in (forward, prepare, backward_kv, backward_q)),
        *(make(excluded, capability) for make in (forward, prepare, backward_kv)),
        *(make(everything, capability) for make in (forward, backward_kv, backward_q)),
        *(make(wide, capability) for make in (forward, prepare, backward_kv, backward_q)),
        *(make(wide_everything, capability) for make in (forward, backward_kv)),
        forward(half, capability),
        *(make(exact, capability) for make in (forward, backward_kv, backward_q)),
        *(make(wide_exact, capability) for make in (forward, backward_kv, backward_q)),
        *xsa(Form()),
        *xsa(Form(dim=96, gate=True)),
    ]
    bounds = launch.launch_document_bounds()
    more: dict[str, Any] = {"max_registers": 64, "accepts": {NARROW: "a binary search reads one boundary a token"}}
    cases.append(_case(gpu.document_bounds_kernel, "document bounds", "i32", {}, bounds, (8 * TOKENS, 0), **more))
    return cases
