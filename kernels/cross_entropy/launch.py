"""How softcapped cross-entropy is launched, and what it moves and computes."""

from pgolf.kernels.launch import Launch, next_power

# Longest row kept in registers. Chosen by reasoning, unmeasured: with longer rows a multiprocessor holds too few of
# them for one to load while another computes.
LONGEST_IN_REGISTERS = 16_384


def launch_forward(vocabulary: int, element_size: int = 2) -> Launch:
    """A row a program: in registers, 64 bytes of logits a thread, by a single warp up to 2 KB; or, where BV is shorter than
    the row, in sweeps of BV. One table serves every architecture, because memory alone sets the pace."""
    if vocabulary > LONGEST_IN_REGISTERS:
        # two programs a multiprocessor: the rows under way must fit in L2 together until their second sweep
        return Launch({"BV": 8192}, num_warps=16, num_stages=1)
    width = max(128, next_power(vocabulary))
    return Launch({"BV": width}, num_warps=max(1, width * element_size // 2048), num_stages=1)


def launch_rescale(vocabulary: int) -> Launch:
    """So many rows that asking whether their upstream is 1 is cheap, in tiles of at most 32 elements a thread."""
    width = max(128, next_power(vocabulary))
    tile = min(width, 512)
    return Launch({"BR": max(1, min(8192 // tile, 16_384 // width)), "BV": tile}, num_warps=8, num_stages=1)


def traffic_forward(count: int, vocabulary: int, element_size: int, want_gradient: bool = True) -> tuple[int, int]:
    """Bytes and floating-point operations: the logits once, their gradient once, and 20 bytes a token besides."""
    passes = 2 if want_gradient else 1
    return count * (vocabulary * element_size * passes + 20), count * vocabulary * (12 if want_gradient else 8)


def traffic_rescale(count: int, vocabulary: int, element_size: int) -> tuple[int, int]:
    """Bytes and floating-point operations: the gradient read and written, where no upstream gradient is 1."""
    return count * (2 * vocabulary * element_size + 4), count * vocabulary
