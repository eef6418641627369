"""Every configuration of the rotary kernels that is compiled ahead of time, for 98,304 tokens of 8 query and 4 key heads."""

from pgolf.kernels.compile import Case
from pgolf.kernels.launch import cdiv
from pgolf.kernels.rotary import gpu, launch

TOKENS, HEADS, KV_HEADS = 98_304, 8, 4
SIZES = {"eps": "fp32", "total": "i32", "length": "i32"}
FLOAT32 = ("p_gain", "p_cos", "p_sin", "p_dgain")
# (dtype, head dim, rotary dims, norm and gain): the challenge's shape first; all, none, and an awkward number of dims
# rotated; the other dtypes; plain RoPE.
FORMS = (
    ("bf16", 64, 16, True),
    ("bf16", 64, 64, True),
    ("bf16", 64, 0, True),
    ("bf16", 128, 32, True),
    ("bf16", 96, 20, True),
    ("fp16", 64, 16, True),
    ("fp32", 64, 16, True),
    ("bf16", 128, 128, False),
)


def compile_cases(capability: int) -> list[Case]:
    cases = []
    for kind, dim, dims, norm in FORMS:
        for direction, kernel in (("forward", gpu.rotary_fwd_kernel), ("backward", gpu.rotary_bwd_kernel)):
            if direction == "backward" and not norm:
                continue  # plain RoPE goes back by its forward kernel
            constants: dict[str, object] = {"H": HEADS, "HKV": KV_HEADS, "D": dim, "HALF": dims // 2, "NORM": norm}
            if direction == "forward":
                constants |= {"GAIN": True} if norm else {"GAIN": False, "p_gain": None}
            chosen = launch.launch_rotary(dim, capability)
            signature = {
                name: SIZES.get(name) or ("*fp32:16" if name in FLOAT32 else f"*{kind}:16")
                for name in kernel.arg_names
                if name not in constants and name not in chosen.tiles
            }
            amount = launch.traffic_rotary(TOKENS, HEADS, KV_HEADS, dim, 4 if kind == "fp32" else 2, direction)
            name = f"{direction} {kind} d={dim} rotary={dims}" + " plain" * (not norm)
            shape = f"N={TOKENS} H={HEADS} Hkv={KV_HEADS}"
            programs = cdiv(TOKENS, chosen.tiles["BT"])
            cases.append(Case(kernel, name, signature, constants, chosen, shape, *amount, max_registers=64, programs=programs))
    return cases
