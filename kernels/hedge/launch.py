"""How the five-expert kernels are launched, and what they move and compute."""

from pgolf.kernels.launch import Launch

# Chosen by reasoning, unmeasured.
TOKENS_PER_PROGRAM = 256


def launch_tokens() -> Launch:
    """Two tokens a thread: what a token costs is the latency of its gathers."""
    return Launch({"BN": TOKENS_PER_PROGRAM}, num_warps=TOKENS_PER_PROGRAM // 64, num_stages=1)


def launch_chunk() -> Launch:
    """As many tokens in flight as one multiprocessor holds for one program: the ranks are few, the batches a chain."""
    return Launch({"BN": 1024}, num_warps=16, num_stages=1)


def traffic_chunk(positions: int, tokens: int, scored: int) -> tuple[int, int]:
    """Bytes and FLOPs: 20 bytes a position of all windows, five sectors and 24 bytes a token, 4 written a scored one."""
    return 20 * positions + (5 * 32 + 24) * tokens + 4 * scored, 5 * positions + 30 * tokens + 40 * scored


def traffic_count(count: int) -> tuple[int, int]:
    """Bytes and operations: a token read, five sectors read and written."""
    return count * (4 + 5 * 64), 5 * count
