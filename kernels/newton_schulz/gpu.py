"""The Triton kernel of Newton-Schulz: a product that is known to be symmetric, computed on one side of the diagonal."""

import triton
import triton.language as tl


@triton.jit
def newton_schulz_kernel_symmetric(
    p_x,
    p_out,
    linear,
    square,
    M: tl.constexpr,
    K: tl.constexpr,
    LINEAR: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
):
    """out = square * x x^T, and with LINEAR, where x is itself symmetric (K = M), + linear * x

    Program i of a matrix has the i-th tile on or below the diagonal, and stores it on both sides.
    """
    i_tile, i_batch = tl.program_id(0), tl.program_id(1).to(tl.int64)
    # tile row r starts at i = r (r + 1) / 2; where 8 i + 1 is a square its root is exact, so the floor is right
    i_m = ((tl.sqrt_rn((8 * i_tile + 1).to(tl.float32)) - 1) / 2).to(tl.int32)
    i_n = i_tile - i_m * (i_m + 1) // 2
    o_m = i_m * BM + tl.arange(0, BM)
    o_n = i_n * BM + tl.arange(0, BM)
    m_m, m_n = o_m < M, o_n < M
    p_x += i_batch * M * K
    p_out += i_batch * M * M

    b_acc = tl.zeros([BM, BM], tl.float32)
    for o_start in range(0, K, BK):
        o_k = o_start + tl.arange(0, BK)
        m_k = (o_k < K)[None, :]
        b_left = tl.load(p_x + o_m[:, None] * K + o_k[None, :], mask=m_m[:, None] & m_k, other=0)  # [BM, BK]
        b_right = tl.load(p_x + o_n[:, None] * K + o_k[None, :], mask=m_n[:, None] & m_k, other=0)  # [BM, BK]
        b_acc = tl.dot(b_left, b_right.T, b_acc, input_precision=PRECISION)
    b_out = square * b_acc
    m_tile = m_m[:, None] & m_n[None, :]
    if LINEAR:
        b_out += linear * tl.load(p_x + o_m[:, None] * K + o_n[None, :], mask=m_tile, other=0).to(tl.float32)
    b_out = b_out.to(p_out.dtype.element_ty)
    tl.store(p_out + o_m[:, None] * M + o_n[None, :], b_out, mask=m_tile)
    if i_m != i_n:
        tl.store(p_out + o_n[:, None] * M + o_m[None, :], b_out.T, mask=m_n[:, None] & m_m[None, :])
