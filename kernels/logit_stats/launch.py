"""How the sweep over the logits is launched, and what it moves and computes."""

from pgolf.kernels.launch import Launch, nearest, next_power

# Logits in flight per warp, by compute capability: 32 a thread. Chosen from compiled code, unmeasured.
ELEMENTS = {80: 1024}


def launch_forward(vocabulary: int, capability: int) -> Launch:
    """One warp and one row a program: a short row at once, a long one in steps of BV."""
    return Launch({"BV": min(nearest(ELEMENTS, capability), max(32, next_power(vocabulary)))}, num_warps=1, num_stages=2)


def traffic_forward(
    count: int, vocabulary: int, num_candidates: int, element_size: int, capped: bool = False
) -> tuple[int, int]:
    """Bytes and FLOPs: the logits once; ids, temperature and results besides."""
    return count * (vocabulary * element_size + 8 * num_candidates + 20), (11 if capped else 6) * count * vocabulary
