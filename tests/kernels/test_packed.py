import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pgolf.kernels.packed import PackedMatrix, expand, launch, pack, packed_matmul, reference
from tests.kernels.compare import assert_close

BITS = (4, 5, 6, 7, 8)
WIDTHS = {4: (4,), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1), 8: (8,)}


def random_packed(bits, rows, cols, device="cpu"):
    """Codes with both extremes among them, the matrix packed, and the same matrix in float64."""
    codes = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (rows, cols), device=device)
    codes[0, 0], codes[-1, -1] = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    scales = torch.rand(rows, device=device) * 0.1 + 0.01
    return codes, pack(codes, scales, bits), codes.double() * scales.double()[:, None]


def words_expected(bits, cols):
    """No more than the last word of each plane may hold padding."""
    return sum(-(-cols * width // 32) for width in WIDTHS[bits])


# packing


@settings(max_examples=60, deadline=None, derandomize=True)
@given(bits=st.sampled_from(BITS), rows=st.integers(1, 5), cols=st.integers(1, 200), seed=st.integers(0, 2**31))
def test_round_trip(bits, rows, cols, seed):
    draw = torch.Generator().manual_seed(seed)
    codes = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (rows, cols), generator=draw)
    packed = pack(codes, torch.ones(rows), bits)
    assert packed.unpack().dtype == torch.int8
    assert torch.equal(packed.unpack().long(), codes)
    assert packed.planes.shape == (rows, words_expected(bits, cols))


@pytest.mark.parametrize("bits", BITS)
def test_every_code_in_every_place(bits):
    every = torch.arange(-(2 ** (bits - 1)), 2 ** (bits - 1))
    codes = (every[:, None] + 2 ** (bits - 1) + torch.arange(70)) % 2**bits - 2 ** (bits - 1)
    assert torch.equal(pack(codes, torch.ones(len(every)), bits).unpack().long(), codes)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("cols", [96, 71, 13])
def test_layout_is_the_documented_one(bits, cols):
    codes, packed, _ = random_packed(bits, 2, cols)
    memory = packed.planes.numpy().view("uint8").reshape(2, -1)
    units = cols // 32

    def bits_at(row, position, width):
        whole = int.from_bytes(memory[row].tobytes(), "little")
        return (whole >> position) & (2**width - 1)

    def stored(row, column):
        code, low, body, rest = 0, 0, 0, 32 * bits * units
        for width in WIDTHS[bits]:
            if column < 32 * units:
                slot, unit = divmod(column, units)
                j, c = divmod(slot, 4)
                fields = min(8, 32 // width)
                element = (j // fields * 4 + c) * units + unit
                position = body + element * fields * width + j % fields * width
            else:
                position = rest + (column - 32 * units) * width
            code |= bits_at(row, position, width) << low
            low += width
            body += 32 * width * units
            rest += 32 * -(-(cols - 32 * units) * width // 32)
        return code - 2 ** (bits - 1)

    assert [[stored(row, column) for column in range(cols)] for row in range(2)] == codes.tolist()


def test_size_is_exact():
    for bits in BITS:
        _, packed, _ = random_packed(bits, 6, 512)
        assert packed.nbytes == 6 * (512 * bits // 8 + 4)
        assert packed.nbytes == launch.packed_bytes(6, 512, bits)
        for cols in (1, 33, 513):
            assert random_packed(bits, 3, cols)[1].nbytes == launch.packed_bytes(3, cols, bits)


def test_to_keeps_everything():
    codes, packed, _ = random_packed(5, 3, 40)
    moved = packed.to("cpu")
    assert isinstance(moved, PackedMatrix) and (moved.bits, moved.rows, moved.cols) == (5, 3, 40)
    assert torch.equal(moved.unpack().long(), codes) and torch.equal(moved.scales, packed.scales)
    assert packed.to("meta").planes.is_meta and packed.to("meta").scales.is_meta


# product, gradient, expansion


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("shape", [(1, 64), (7, 33), (2, 3, 129)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_product_and_gradient(bits, shape, dtype):
    _, packed, dense = random_packed(bits, 21, shape[-1])
    x = torch.randn(shape).to(dtype).requires_grad_()
    y = packed_matmul(x, packed)
    upstream = torch.randn(*shape[:-1], 21).to(dtype)
    y.backward(upstream)
    ratio = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 5e-3}[dtype]
    assert y.dtype == dtype and x.grad.dtype == dtype
    assert_close(y, torch.einsum("...k,nk->...n", x.double(), dense), ratio)
    assert_close(x.grad, torch.einsum("...n,nk->...k", upstream.double(), dense), ratio, "gradient")


def test_gradcheck():
    for bits, cols in ((5, 35), (8, 32)):
        _, packed, _ = random_packed(bits, 6, cols)
        x = torch.randn(3, cols, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda x, p=packed: packed_matmul(x, p), x)
        assert torch.autograd.gradgradcheck(lambda x, p=packed: packed_matmul(x, p), x)


@pytest.mark.parametrize("bits", BITS)
def test_expansion_rounds_once(bits):
    codes, packed, _ = random_packed(bits, 9, 77)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert torch.equal(expand(packed, dtype), (codes.float() * packed.scales[:, None]).to(dtype))
    assert expand(packed).dtype == torch.bfloat16


def test_no_rows_of_input():
    _, packed, _ = random_packed(6, 5, 40)
    x = torch.zeros(0, 40, requires_grad=True)
    y = packed_matmul(x, packed)
    y.sum().backward()
    assert y.shape == (0, 5) and x.grad.shape == (0, 40)


@pytest.mark.parametrize("cols", [64, 45])
def test_opcheck(cols):
    _, packed, _ = random_packed(6, 10, cols)
    tail = (packed.bits, cols)
    x = torch.randn(cols, 6).T.requires_grad_()
    planes = torch.stack((packed.planes, packed.planes), -1)[..., 0]
    assert not x.is_contiguous() and not planes.is_contiguous()
    torch.library.opcheck(torch.ops.pgolf.packed_matmul.default, (x, packed.planes, packed.scales, *tail))
    torch.library.opcheck(torch.ops.pgolf.packed_matmul.default, (x.detach(), planes, packed.scales, *tail))
    grad = torch.randn(10, 6).T.requires_grad_()
    torch.library.opcheck(torch.ops.pgolf.packed_matmul_backward.default, (grad, packed.planes, packed.scales, *tail))
    torch.library.opcheck(torch.ops.pgolf.packed_expand.default, (packed.planes, packed.scales, *tail, torch.bfloat16))


def test_compiles_whole_with_any_length():
    _, packed, dense = random_packed(5, 12, 40)
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda x: packed_matmul(x, packed).square() @ expand(packed, torch.float32),
        fullgraph=True, dynamic=True, backend="aot_eager",
    )  # fmt: skip
    for length in (3, 8):
        x = torch.randn(2, length, 40, requires_grad=True)
        compiled(x).sum().backward()
        expected = x.detach().double().requires_grad_()
        ((expected @ dense.T).square() @ dense).sum().backward()
        assert_close(x.grad, expected.grad, 1e-5)


# launch choice


@pytest.mark.parametrize("capability", [80, 86, 90, 100, 120])
def test_choice_by_tokens(capability):
    ways = [launch.choose(tokens, 8192, 512, torch.bfloat16, capability) for tokens in range(1, 400)]
    assert ways[0] == "gemv" and set(ways[1:16]) <= {"split", "matmul"} and ways[-1] == "expand"
    first = ways.index("expand")
    assert 128 <= first <= 256 and set(ways[first:]) == {"expand"}, "one crossover"


def test_choice_by_shape_and_dtype():
    assert launch.choose(1, 512, 512, torch.float32, 90) == "gemv"
    assert launch.choose(2, 512, 512, torch.float32, 90) == "expand"
    assert launch.choose(16, 512, 512, torch.float16, 90) == "split", "eight tiles cannot fill the device"
    assert launch.choose(128, 65536, 512, torch.bfloat16, 90) == "matmul"
    assert launch.choose_backward(16, 512, torch.bfloat16, 90) == "matmul"
    assert launch.choose_backward(16, 513, torch.bfloat16, 90) == "expand", "the kernel takes whole units only"
    assert launch.choose_backward(16, 512, torch.float32, 90) == "expand"
    assert launch.choose_backward(65, 512, torch.bfloat16, 90) == "expand"


def test_tiles_follow_the_shape():
    widths = {31: 16, 1023: 16, 1024: 32, 2047: 32, 2048: 64, 4095: 64, 4096: 128, 99999: 128}
    assert {cols: launch.launch_gemv(cols).tiles["BU"] for cols in widths} == widths
    widths = {31: 16, 1023: 16, 1024: 32, 2048: 64, 99999: 64}
    assert {cols: launch.launch_expand(cols).tiles["BU"] for cols in widths} == widths
    heights = {2: 16, 16: 16, 17: 32, 33: 64, 64: 64, 65: 128, 256: 128}
    assert {tokens: launch.launch_matmul(tokens, 90).tiles["BM"] for tokens in heights} == heights
    heights = {1: 16, 16: 16, 17: 32, 64: 32}
    assert {tokens: launch.launch_backward(tokens, 100).tiles["BM"] for tokens in heights} == heights
    for _, chosen in launch.GEMV:
        assert chosen.tiles["BU"] < 32 * chosen.num_warps


def test_splits_fill_the_device_and_leave_work():
    assert launch.matmul_splits(16, 65536, 8192, 90) == 1
    assert launch.matmul_splits(16, 512, 8192, 90) == 16
    assert launch.matmul_splits(16, 1024, 8192, 90) == 16 and launch.matmul_splits(16, 2048, 8192, 90) == 8
    assert launch.matmul_splits(16, 512, 512, 90) == 2, "four steps, two for each"
    assert launch.matmul_splits(16, 512, 20, 90) == 1, "no whole unit, nothing to divide"
    assert launch.backward_splits(16, 2048, 512, 90) == 16
    assert launch.backward_splits(16, 64, 512, 90) == 1


def test_traffic_counts_packed_bytes():
    assert launch.traffic_gemv(8192, 8192, 5) == (8192 * 8192 * 5 // 8 + 4 * 8192 + 2 * 16384, 2 * 8192**2)
    assert launch.traffic_matmul(3, 10, 64, 6) == (10 * (48 + 4) + 2 * 3 * (64 + 10), 2 * 3 * 10 * 64)
    assert launch.traffic_matmul(3, 10, 64, 6, splits=2)[0] == 10 * 48 + 2 * 3 * 64 + 2 * 4 * 3 * 10
    assert launch.traffic_reduce(3, 10, 2) == (3 * 10 * (8 + 2) + 40, 3 * 10 * 3)
    assert launch.traffic_reduce(3, 10, 2, scaled=False) == (3 * 10 * (8 + 2), 3 * 10 * 2)
    assert launch.traffic_expand(10, 33, 5) == (10 * 4 * (5 + 2 + 1) + 2 * 330, 330)
    assert launch.traffic_backward(3, 10, 64, 7) == (10 * (56 + 4) + 2 * 3 * (10 + 64), 2 * 3 * 640)
    assert launch.traffic_backward(3, 10, 64, 7, splits=4)[0] == 10 * (56 + 4) + 2 * 30 + 16 * 3 * 64


# errors


def test_bad_arguments():
    codes, packed, _ = random_packed(5, 4, 8)
    scales = torch.ones(4)
    for arguments, words in (
        ((codes, scales, 3), "one of 4, 5, 6, 7, 8"),
        ((codes.float(), scales, 5), "matrix of integers"),
        ((codes[0], scales, 5), "matrix of integers"),
        ((codes[:, :0], scales, 5), "at least one element"),
        ((codes, scales[:3], 5), "one float per row"),
        ((codes, scales.long(), 5), "one float per row"),
        ((codes + 1, scales, 5), "-15 to 16, but 5 bits hold -16 to 15"),
        ((codes - 1, scales, 5), "-17 to 14, but 5 bits hold -16 to 15"),
    ):
        with pytest.raises(ValueError, match=words):
            pack(*arguments)
    with pytest.raises(ValueError, match="dimension of 8"):
        packed_matmul(torch.zeros(2, 9), packed)
    with pytest.raises(ValueError, match="x is torch.int64"):
        packed_matmul(torch.zeros(2, 8, dtype=torch.long), packed)
    with pytest.raises(ValueError, match="on meta, the packed matrix on cpu"):
        packed_matmul(torch.zeros(2, 8, device="meta"), packed)
    with pytest.raises(ValueError, match="dtype is torch.int8"):
        expand(packed, torch.int8)


def test_reference_keeps_scales_out_of_the_sum():
    codes, scales = torch.tensor([[3, -4]]), torch.tensor([1 / 3])
    x = torch.tensor([[1.0, 1.0]])
    assert reference.matmul(x, codes, scales).item() == -scales.item()


def test_import_is_light():
    program = "import sys, pgolf.kernels.packed; sys.exit('triton' in sys.modules or 'numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_what_is_not_packed_is_named():
    packed = pack(torch.zeros(2, 32, dtype=torch.int8), torch.ones(2), 5)
    with pytest.raises(TypeError, match="packed must be a PackedMatrix, as pack"):
        packed_matmul(torch.zeros(3, 32), torch.nn.Linear(32, 2))
    with pytest.raises(TypeError, match="packed must be a PackedMatrix"):
        expand(torch.zeros(2, 32))
    with pytest.raises(TypeError, match="x must be a torch.Tensor, not numpy's ndarray"):
        packed_matmul(torch.zeros(3, 32).numpy(), packed)
    assert packed_matmul(torch.zeros(0, 5, 32), packed).shape == (0, 5, 2)
