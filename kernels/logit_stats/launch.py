"""How the sweep over the logits is launched, and what it moves and computes."""

from pgolf.kernels.launch import Launch, nearest, next_power

# Logits in flight per program, by compute capability: 32 a thread forward, 16 backward. Chosen by reasoning, unmeasured.
FORWARD_ELEMENTS = {80: 4096}
BACKWARD_ELEMENTS = {80: 2048}


def launch_forward(vocabulary: int, capability: int) -> Launch:
    """BR rows of BV logits a program: several short rows, or one long one in steps."""
    return _launch(nearest(FORWARD_ELEMENTS, capability), vocabulary)


def launch_backward(vocabulary: int, capability: int) -> Launch:
    """Half the forward's tile: rows, their gradients and the candidates' comparisons are alive at once."""
    return _launch(nearest(BACKWARD_ELEMENTS, capability), vocabulary)


def _launch(tile: int, vocabulary: int) -> Launch:
    width = min(tile, max(128, next_power(vocabulary)))
    return Launch({"BR": tile // width, "BV": width}, num_warps=4, num_stages=2)


def traffic_forward(count: int, vocabulary: int, num_candidates: int, element_size: int) -> tuple[int, int]:
    """Bytes and FLOPs: the logits once; ids, temperature and results besides."""
    return count * (vocabulary * element_size + 8 * num_candidates + 20), 6 * count * vocabulary


def traffic_backward(count: int, vocabulary: int, num_candidates: int, element_size: int) -> tuple[int, int]:
    """Bytes and FLOPs: the logits read, their gradient written; ids, statistics and their gradients besides."""
    flops = (12 + 2 * num_candidates) * count * vocabulary
    return count * (2 * vocabulary * element_size + 8 * num_candidates + 28), flops
