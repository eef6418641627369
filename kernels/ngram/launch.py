"""How the n-gram kernels are launched, and what they move and compute."""

from pgolf.kernels.launch import Launch, next_power

# Chosen by reasoning, unmeasured.
TOKENS_PER_PROGRAM = 256


def launch_mix() -> Launch:
    """Two tokens a thread: what a token costs is the latency of its gathers."""
    return Launch({"BN": TOKENS_PER_PROGRAM}, num_warps=TOKENS_PER_PROGRAM // 64, num_stages=1)


def launch_evidence(last: int) -> Launch:
    """One warp, one lane a thread, so that a lane reads what it wrote: orders 0 to `last` of as many documents as fit."""
    orders = next_power(last + 1)
    return Launch({"BD": 32 // orders, "BO": orders}, num_warps=1, num_stages=1)


def launch_mix_online() -> Launch:
    """One warp: each token needs the weights that the one before it left."""
    return Launch({}, num_warps=1, num_stages=1)


def traffic_evidence(count: int, last: int, num_orders: int) -> tuple[int, int]:
    """Bytes: a record of 32 bytes read and written twice, and a slot, for each of orders 0 to `last`; 13 written an order."""
    return count * ((last + 1) * 160 + 13 * num_orders + 4), 0


def traffic_mix(count: int, num_orders: int) -> tuple[int, int]:
    """Bytes and FLOPs of mixing `count` tokens on a GPU."""
    return count * (13 * num_orders + 12), count * (14 * num_orders + 8)


def traffic_mix_online(count: int, num_orders: int) -> tuple[int, int]:
    """Bytes and FLOPs of mixing and learning."""
    return count * (45 * num_orders + 13), count * (22 * num_orders + 8)
