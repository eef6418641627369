"""Rounding by GPTQ beside the plain loop over columns."""

import torch

from bench.eager import plain_gptq
from pgolf.artifact import gptq
from pgolf.artifact.grid import Steps, row_sigma


def test_gptq(bench):
    """A stack of matrices in blocks of columns, beside one matrix after another, column by column."""
    count, rows, columns = (2, 12, 40) if bench.tiny else (4, 192, 576)
    weight = torch.randn(count, rows, columns, device=bench.device) * 0.02
    inputs = torch.randn(count, 4 * columns, columns, device=bench.device)
    hessian = inputs.mT @ inputs / (4 * columns)
    steps = Steps(6, sigmas=12.85)

    def ours():
        return gptq.standard(weight, hessian, steps)

    def plain():
        """The same preparation, without stacks and without blocks."""
        rounded = []
        for matrix, moments in zip(weight, hessian, strict=True):
            damped = gptq._damped(moments[None], 0.01)[0]
            order = damped.diagonal().argsort(descending=True, stable=True)
            factor = torch.linalg.cholesky(gptq._inverse(damped[order][:, order]), upper=True)
            scale = steps.of(steps.sigmas * row_sigma(matrix)).half().float()
            codes = plain_gptq(matrix[:, order], scale, steps.largest, factor)
            rounded.append(codes[:, order.argsort()] * scale[:, None])
        return torch.stack(rounded)

    own = gptq.output_error(weight, ours().values(), hessian)
    other = gptq.output_error(weight, plain(), hessian)
    assert torch.allclose(own, other, rtol=0.02), f"output errors {own.tolist()} and {other.tolist()}"
    peer = "column by column"
    line = bench.measure(
        f"GPTQ, {count} matrices of {rows} x {columns}",
        {"ours": ours, peer: plain},
        min_speedup={peer: 1.0},
        per_call=(weight.numel(), "weights/s"),
        host=True,
    )
    bench.keep(line)
