"""The five-expert mixer's steps as registered operators: launchers, shapes, registration. `mixer.py` has the public class."""

from typing import Any

import torch
from torch import Tensor

from pgolf.kernels.hedge.launch import launch_tokens
from pgolf.kernels.hedge.reference import SMOOTHING, TRIGRAM_SMOOTHING
from pgolf.kernels.launch import cdiv, implement
from pgolf.kernels.tensors import check_range
from pgolf.kernels.threads import in_parallel

# ---- on a CPU


def score_cpu(
    neural: Tensor,
    entropy: Tensor,
    inputs: Tensor,
    targets: Tensor,
    valid: Tensor,
    unigram: Tensor,
    bigram: Tensor,
    bigram_total: Tensor,
    trigram: Tensor,
    trigram_total: Tensor,
    log_weights: Tensor,
    tokens: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Windows (B, T): mixture NLL (B, T), experts' NLLs (5, B, T), their sums over the valid positions (5)."""
    from pgolf.kernels.hedge import cpu

    check_range(inputs, 0, len(unigram) - 1, "HedgeMixer: inputs")
    check_range(targets, 0, len(unigram) - 1, "HedgeMixer: targets")
    nll, experts = neural.new_empty(neural.shape), neural.new_empty((5, *neural.shape))
    # one row a window, so that the sums do not depend on how threads share them
    sums = torch.zeros(len(neural), 5, dtype=torch.float64)
    windows = [x.contiguous().numpy() for x in (neural, entropy, inputs.int(), targets.int(), valid)]
    tables = [x.numpy() for x in (unigram, bigram, bigram_total, trigram, trigram_total)]
    rules = (log_weights.double().softmax(0).numpy(), float(tokens), SMOOTHING, TRIGRAM_SMOOTHING)
    results = (nll.numpy(), experts.numpy(), sums.numpy())

    def work(first: int) -> None:
        here = slice(first, first + share)
        cpu.score(*(x[here] for x in windows), *tables, *rules, results[0][here], results[1][:, here], results[2][here])

    share = max(1, cdiv(len(neural), torch.get_num_threads()))
    in_parallel(work, range(0, len(neural), share))
    return nll, experts, sums.sum(0)


def ngrams_cpu(
    tokens: Tensor,
    unigram: Tensor,
    bigram: Tensor,
    bigram_total: Tensor,
    trigram: Tensor,
    trigram_total: Tensor,
    counted: int,
) -> tuple[Tensor, Tensor]:
    """Probabilities (3, n) of tokens (n,) under the n-gram experts, and running sums of their NLLs (3, n + 1)."""
    from pgolf.kernels.hedge import cpu

    check_range(tokens, 0, len(unigram) - 1, "HedgeMixer: tokens")
    probabilities = torch.empty(3, len(tokens), dtype=torch.float64)
    cumulative = torch.empty(3, len(tokens) + 1, dtype=torch.float64)
    tables = [x.numpy() for x in (unigram, bigram, bigram_total, trigram, trigram_total)]
    cpu.ngrams(
        tokens.int().contiguous().numpy(), *tables, float(counted), SMOOTHING, TRIGRAM_SMOOTHING,
        probabilities.numpy(), cumulative.numpy(),
    )  # fmt: skip
    return probabilities, cumulative


def score_windows_cpu(
    neural: Tensor,
    entropy: Tensor,
    tokens: Tensor,
    begins: list[int],
    lengths: list[int],
    scored: list[int],
    probabilities: Tensor,
    cumulative: Tensor,
    unigram: Tensor,
    bigram: Tensor,
    bigram_total: Tensor,
    trigram: Tensor,
    trigram_total: Tensor,
    log_weights: Tensor,
    counted: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """NLL (S,) and experts' NLLs (5, S) of the scored positions, and the experts' sums over all positions (5)."""
    from pgolf.kernels.hedge import cpu

    count = sum(scored)
    nll, experts, sums = (torch.empty(shape, dtype=torch.float64) for shape in ((count,), (5, count), (5,)))
    sums.zero_()
    plan = [torch.tensor(x, dtype=torch.int64) for x in (begins, lengths, scored)]
    arrays = (neural.contiguous(), entropy.contiguous(), tokens.int().contiguous(), *plan)
    tables = (probabilities, cumulative, trigram, trigram_total)
    cpu.score_windows(
        *(x.numpy() for x in (*arrays, *tables)), TRIGRAM_SMOOTHING, log_weights.double().softmax(0).numpy(),
        nll.numpy(), experts.numpy(), sums.numpy(),
    )  # fmt: skip
    return nll, experts, sums


def count_cpu(
    tokens: Tensor, unigram: Tensor, bigram: Tensor, bigram_total: Tensor, trigram: Tensor, trigram_total: Tensor
) -> None:
    from pgolf.kernels.hedge import cpu

    check_range(tokens, 0, len(unigram) - 1, "HedgeMixer: tokens")
    tables = (unigram, bigram, bigram_total, trigram, trigram_total)
    cpu.count(tokens.int().contiguous().numpy(), *(x.numpy() for x in tables))


# ---- on a GPU


def score_triton(
    neural: Tensor, entropy: Tensor, inputs: Tensor, targets: Tensor, valid: Tensor, *tables_and_rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    from pgolf.kernels.hedge import gpu

    *tables, log_weights, tokens = tables_and_rest
    buckets, vocabulary = tables[3].shape
    windows = [x.contiguous() for x in (neural, entropy, inputs.int(), targets.int(), valid)]
    nll, experts = neural.new_empty(neural.shape), neural.new_empty((5, *neural.shape))
    launch = launch_tokens()
    blocks = cdiv(neural.numel(), launch.tiles["BN"])
    sums = neural.new_empty((blocks, 5))
    if blocks:
        gpu.hedge_fwd_kernel[(blocks,)](
            *windows, *tables, log_weights.log_softmax(0).float(), nll, experts, sums, neural.numel(), neural.shape[1], tokens,
            SMOOTHING, TRIGRAM_SMOOTHING, V=vocabulary, BUCKETS=buckets, **launch.options,
        )  # fmt: skip
    return nll, experts, sums.to(log_weights.dtype).sum(0)


def ngrams_triton(tokens: Tensor, *tables_and_rest: Any) -> tuple[Tensor, Tensor]:
    """Nothing: a GPU gathers again for each window, at the speed of the logits' sweep, and needs no running sums."""
    return tokens.new_empty((3, 0), dtype=torch.float32), tokens.new_empty((3, 0), dtype=torch.float32)


def score_windows_triton(
    neural: Tensor,
    entropy: Tensor,
    tokens: Tensor,
    begins: list[int],
    lengths: list[int],
    scored: list[int],
    probabilities: Tensor,
    cumulative: Tensor,
    *tables_and_rest: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    width = neural.shape[1]
    tokens = torch.nn.functional.pad(tokens, (0, width))
    inputs = torch.stack([tokens[begin : begin + width] for begin in begins])
    targets = torch.stack([tokens[begin + 1 : begin + 1 + width] for begin in begins])
    places = torch.arange(width, device=tokens.device)
    masks = {length: places < length for length in set(lengths)}
    valid = torch.stack([masks[length] for length in lengths])
    nll, experts, sums = score_triton(neural, entropy, inputs, targets, valid, *tables_and_rest)
    spans = [(row, slice(length - kept, length)) for row, (length, kept) in enumerate(zip(lengths, scored, strict=True))]
    kept_nll, kept_experts = ([x[..., row, span] for row, span in spans] for x in (nll, experts))
    return torch.cat(kept_nll), torch.cat(kept_experts, 1), sums


def count_triton(tokens: Tensor, *tables: Tensor) -> None:
    from pgolf.kernels.hedge import gpu

    tokens = tokens.int().contiguous()
    buckets, vocabulary = tables[3].shape
    launch = launch_tokens()
    if len(tokens):
        grid = (cdiv(len(tokens), launch.tiles["BN"]),)
        gpu.hedge_count_kernel[grid](tokens, *tables, len(tokens), V=vocabulary, BUCKETS=buckets, **launch.options)


# ---- shapes, registration


def _fake_score(
    neural: Tensor, entropy: Tensor, inputs: Tensor, targets: Tensor, valid: Tensor, *tables_and_rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    log_weights = tables_and_rest[-2]
    return neural.new_empty(neural.shape), neural.new_empty((5, *neural.shape)), log_weights.new_empty(5)


def _fake_ngrams(tokens: Tensor, *tables_and_rest: Any) -> tuple[Tensor, Tensor]:
    if tokens.device.type != "cpu":
        return ngrams_triton(tokens)
    return tokens.new_empty((3, len(tokens)), dtype=torch.float64), tokens.new_empty((3, len(tokens) + 1), dtype=torch.float64)


def _fake_score_windows(
    neural: Tensor, entropy: Tensor, tokens: Tensor, begins: list[int], lengths: list[int], scored: list[int], *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    count = sum(scored)
    return neural.new_empty(count), neural.new_empty((5, count)), rest[-2].new_empty(5)


TABLES = "Tensor unigram, Tensor bigram, Tensor bigram_total, Tensor trigram, Tensor trigram_total"
TABLES_CHANGED = "Tensor(a!) unigram, Tensor(b!) bigram, Tensor(c!) bigram_total, Tensor(d!) trigram, Tensor(e!) trigram_total"

torch.library.define(
    "pgolf::hedge_score",
    f"(Tensor neural, Tensor entropy, Tensor inputs, Tensor targets, Tensor valid, {TABLES}, Tensor log_weights, int tokens)"
    " -> (Tensor nll, Tensor experts, Tensor sums)",
)
torch.library.define(
    "pgolf::hedge_ngrams", f"(Tensor tokens, {TABLES}, int counted) -> (Tensor probabilities, Tensor cumulative)"
)
torch.library.define(
    "pgolf::hedge_score_windows",
    "(Tensor neural, Tensor entropy, Tensor tokens, int[] begins, int[] lengths, int[] scored, Tensor probabilities,"
    f" Tensor cumulative, {TABLES}, Tensor log_weights, int counted) -> (Tensor nll, Tensor experts, Tensor sums)",
)
torch.library.define("pgolf::hedge_count", f"(Tensor tokens, {TABLES_CHANGED}) -> ()")
for name, on_cpu, on_gpu, fake in (
    ("score", score_cpu, score_triton, _fake_score),
    ("ngrams", ngrams_cpu, ngrams_triton, _fake_ngrams),
    ("score_windows", score_windows_cpu, score_windows_triton, _fake_score_windows),
    ("count", count_cpu, count_triton, lambda *arguments: None),
):
    implement(f"pgolf::hedge_{name}", "CPU", on_cpu)
    implement(f"pgolf::hedge_{name}", "CUDA", on_gpu)
    torch.library.register_fake(f"pgolf::hedge_{name}", fake)
