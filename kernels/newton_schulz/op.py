"""Newton-Schulz orthogonalisation as a registered operator: coefficient tables, launchers and the public function."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from pgolf.kernels.launch import capability_of, implement
from pgolf.kernels.newton_schulz.launch import launch_symmetric, triangle, uses_kernel
from pgolf.kernels.tensors import require_tensors

# The quintic of Muon (Keller Jordan, https://kellerjordan.github.io/posts/muon/): it lifts small singular values fast and
# leaves all of them between about 0.7 and 1.2.
CLASSIC = ((3.4445, -4.7750, 2.0315),)

# Polar Express (arXiv:2505.16932, algorithm 1, degree 5): the best quintic for the interval that the steps before it
# left, from singular values of 1e-3 on. All but the last are contracted by 1.01, the published guard against rounding.
_OPTIMAL = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
)
POLAR_EXPRESS = (*((a / 1.01, b / 1.01**3, c / 1.01**5) for a, b, c in _OPTIMAL), (1.875, -1.25, 0.375))

# The same made for five steps with another guard, as PR #1787 of openai/parameter-golf has it.
POLAR_EXPRESS_5 = (
    (8.156555, -22.483293, 15.878770),
    (4.042930, -2.808917, 0.500018),
    (3.891668, -2.772484, 0.506065),
    (3.285754, -2.368129, 0.464490),
    (2.346541, -1.709783, 0.423236),
)

TABLES = {"classic": CLASSIC, "polar_express": POLAR_EXPRESS, "polar_express_5": POLAR_EXPRESS_5}


def coefficient_table(coefficients: str | Iterable[Iterable[float]], steps: int) -> list[tuple[float, float, float]]:
    """One triple per step: the table's first `steps`, its last one repeated where it is shorter."""
    if steps < 1:
        raise ValueError(f"newton_schulz: steps is {steps}; it must be at least 1")
    if isinstance(coefficients, str):
        if coefficients not in TABLES:
            raise ValueError(f"newton_schulz: no coefficients {coefficients!r}; there are {', '.join(TABLES)}")
        coefficients = TABLES[coefficients]
    triples = [[float(value) for value in triple] for triple in coefficients]
    if not triples or any(len(triple) != 3 for triple in triples):
        raise ValueError("newton_schulz: coefficients must be one or more triples (a, b, c), or the name of a table")
    table = [(a, b, c) for a, b, c in triples]
    return (table + table[-1:] * steps)[:steps]


def newton_schulz(
    g: Tensor,
    steps: int = 5,
    coefficients: str | Iterable[Iterable[float]] = "classic",
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Push every singular value of g towards 1: with g = U S V^T, an approximation of U V^T.

        X = g / (|g|_F + 1e-7), transposed where g has more rows than columns; then, `steps` times,
        A = X X^T,    X <- a X + (b A + c A A) X

    Args:
        g: (..., m, n); every matrix of the batch on its own
        steps: how many iterations
        coefficients: "classic": Muon's (3.4445, -4.7750, 2.0315) at every step; "polar_express": the table of
            arXiv:2505.16932, one triple a step; "polar_express_5": #1787's; or any triples (a, b, c). The last one repeats
            where there are more steps
        dtype: of the iterations: bfloat16 on CUDA and float32 on a CPU if not given

    Returns:
        Like g. A matrix of zeros gives zeros. There is no gradient: the result is detached.

    Example:
        >>> update = newton_schulz(torch.randn(22, 512, 2048))

    Both A and b A + c A A are symmetric: on CUDA their tiles are computed on and below the diagonal only and stored
    twice. For one m x n matrix, m <= n, b bytes per element, one step moves about b (4 m n + 4 m^2) bytes for
    m^2 n + m^3 + 2 m^2 n FLOPs, against 4 m^2 n + 2 m^3 without the symmetry.
    """
    require_tensors("newton_schulz", {"g": g})
    if g.dim() < 2 or not g.is_floating_point():
        raise ValueError(f"newton_schulz: g is {g.dtype} {tuple(g.shape)}; it must be floating point, (..., rows, columns)")
    table = coefficient_table(coefficients, steps)
    if dtype is None:
        dtype = torch.bfloat16 if g.is_cuda else torch.float32
    flat = g.detach().reshape(-1, *g.shape[-2:])
    return torch.ops.pgolf.newton_schulz(flat, [value for triple in table for value in triple], dtype).reshape(g.shape)


def _start(g: Tensor, dtype: torch.dtype) -> Tensor:
    """The normalised matrices with their short side first, contiguous."""
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    norm = torch.linalg.vector_norm(g, dim=(-2, -1), keepdim=True, dtype=exact)
    x = (g.to(exact) / (norm + 1e-7)).to(dtype)
    return (x.mT if g.shape[-2] > g.shape[-1] else x).contiguous()


def _finish(x: Tensor, g: Tensor) -> Tensor:
    return (x.mT if g.shape[-2] > g.shape[-1] else x).to(g.dtype).contiguous()


def iterate_torch(g: Tensor, coefficients: Sequence[float], dtype: torch.dtype) -> Tensor:
    """`coefficients` are the triples of all steps, one after another."""
    x = _start(g, dtype)
    for a, b, c in zip(coefficients[::3], coefficients[1::3], coefficients[2::3], strict=True):
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return _finish(x, g)


# ---- on a GPU


def symmetric_triton(x: Tensor, linear: float | None, square: float) -> Tensor:
    """square * x x^T + linear * x, the second term only where `linear` is not None and x is symmetric."""
    from pgolf.kernels.newton_schulz import gpu

    batch, m, k = x.shape
    out = x.new_empty(batch, m, m)
    launch = launch_symmetric(capability_of(x.device))
    gpu.newton_schulz_kernel_symmetric[(triangle(m, launch.tiles["BM"]), batch)](
        x,
        out,
        0.0 if linear is None else linear,
        square,
        M=m,
        K=k,
        LINEAR=linear is not None,
        PRECISION="ieee" if x.dtype == torch.float32 else "tf32",
        **launch.options,
    )
    return out


def iterate_triton(g: Tensor, coefficients: Sequence[float], dtype: torch.dtype) -> Tensor:
    x = _start(g, dtype)
    if x.numel() == 0:
        return _finish(x, g)
    for a, b, c in zip(coefficients[::3], coefficients[1::3], coefficients[2::3], strict=True):
        polynomial = symmetric_triton(symmetric_triton(x, None, 1.0), b, c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return _finish(x, g)


def iterate_cuda(g: Tensor, coefficients: Sequence[float], dtype: torch.dtype) -> Tensor:
    m, n = sorted(g.shape[-2:])
    by_kernel = uses_kernel(m, n, dtype, capability_of(g.device))
    return (iterate_triton if by_kernel else iterate_torch)(g, coefficients, dtype)


torch.library.define("pgolf::newton_schulz", "(Tensor g, float[] coefficients, ScalarType dtype) -> Tensor")
implement("pgolf::newton_schulz", "CPU", iterate_torch)
implement("pgolf::newton_schulz", "CUDA", iterate_cuda)
torch.library.register_fake("pgolf::newton_schulz", lambda g, coefficients, dtype: g.new_empty(g.shape))
