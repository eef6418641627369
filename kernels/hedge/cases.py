"""Every configuration of the five-expert kernels to compile ahead of time."""

from pgolf.kernels.compile import NARROW, Case
from pgolf.kernels.hedge import gpu
from pgolf.kernels.hedge.launch import launch_chunk, launch_tokens, traffic_chunk, traffic_count

BUCKETS = 65_536
CHUNK = 32_769


def compile_cases(capability: int) -> list[Case]:
    """Chunks in windows, and counting."""
    return [_chunk(1024), _chunk(8192), _count(1024)]


def _chunk(vocabulary: int) -> Case:
    """A chunk in windows of 2048 at a stride of 64, for one rank."""
    moved, flops = traffic_chunk(2048 * CHUNK // 64, CHUNK + 2048, CHUNK)
    signature = _pointers("fp32", "neural", "entropy", "losses", "nll") | _pointers("i32", "tokens", "windows", "ranks")
    signature |= _pointers("fp64", "log_weights") | TABLES
    signature |= dict.fromkeys(("count", "width", "batch", "batches", "tokens"), "i32")
    signature |= dict.fromkeys(("eta", "smoothing", "trigram_smoothing"), "fp32")
    return Case(
        kernel=gpu.hedge_chunk_kernel,
        name="chunk",
        signature=signature,
        constants={"V": vocabulary, "BUCKETS": BUCKETS},
        launch=launch_chunk(),
        shape=f"N={CHUNK} V={vocabulary}",
        bytes=moved,
        flops=flops,
        max_registers=96,
        accepts={NARROW: "a window begins at any token, so that no load of it is aligned"},
    )


def _count(vocabulary: int) -> Case:
    moved, flops = traffic_count(CHUNK)
    return Case(
        kernel=gpu.hedge_count_kernel,
        name="count",
        signature=_pointers("i32", "tokens") | TABLES | {"count": "i32"},
        constants={"V": vocabulary, "BUCKETS": BUCKETS},
        launch=launch_tokens(),
        shape=f"N={CHUNK} V={vocabulary}",
        bytes=moved,
        flops=flops,
        max_registers=64,
        accepts={NARROW: "a token gathers single counts"},
    )


def _pointers(kind: str, *names: str) -> dict[str, str]:
    return {f"p_{name}": f"*{kind}:16" for name in names}


TABLES = _pointers("i32", "unigram", "bigram", "bigram_total", "trigram", "trigram_total")
