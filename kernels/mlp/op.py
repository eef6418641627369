"""The squared-leaky-rectifier MLP as a registered operator: launch choice, launchers, autograd and the public function."""

import torch


def mlp(x: torch.Tensor, w_up: torch.Tensor, w_down: torch.Tensor, slope: float = 0.5) -> torch.Tensor:
    """y = h^2 w_down^T with h = LeakyReLU(x w_up^T, slope): the two products of an MLP and what is between them.

    x       (..., D)
    w_up    (H, D)
    w_down  (D_out, H)
    slope   in [0, 1]; 0 is the plain squared rectifier
    returns (..., D_out), in the one dtype of all inputs

    Gradients flow to x, w_up and w_down.
    """
    _check(x, w_up, w_down, slope)
    y, _ = torch.ops.pgolf.mlp(x.reshape(-1, x.shape[-1]), w_up, w_down, float(slope))
    return y.reshape(*x.shape[:-1], w_down.shape[0])


def _check(x, w_up, w_down, slope):
    if not (x.dtype == w_up.dtype == w_down.dtype and x.is_floating_point()):
        raise ValueError(
            f"mlp: x is {x.dtype}, w_up {w_up.dtype}, w_down {w_down.dtype}; cast them to one floating-point dtype"
        )
    if x.dim() < 1 or w_up.dim() != 2 or w_down.dim() != 2 or x.shape[-1] != w_up.shape[1] or w_up.shape[0] != w_down.shape[1]:
        raise ValueError(
            f"mlp: x {tuple(x.shape)}, w_up {tuple(w_up.shape)} and w_down {tuple(w_down.shape)} do not fit together; "
            "they must be (..., D), (hidden, D) and (D_out, hidden)"
        )
    if not 0 <= slope <= 1:
        raise ValueError(f"mlp: slope is {slope}; it must lie in [0, 1]")


def forward_torch(x, w_up, w_down, slope):
    """Keeps h itself: here it is the one tensor that makes both the product and the derivative cheapest."""
    h = torch.nn.functional.leaky_relu_(x @ w_up.T, slope)
    return (h * h) @ w_down.T, h


def backward_torch(dy, x, w_up, w_down, h, slope, wants_x, wants_up, wants_down):
    dx, d_up, d_down = x.new_empty(0), w_up.new_empty(0), w_down.new_empty(0)
    if wants_down:
        d_down = dy.T @ (h * h)
    if wants_x or wants_up:
        # d(h^2) = 2 h dh; the factor 2 rides on the product
        d_hidden = torch.addmm(dy.new_empty(()), dy, w_down, beta=0, alpha=2).mul_(h)
        d_pre = torch.ops.aten.leaky_relu_backward(d_hidden, h, slope, True)
        if wants_x:
            dx = d_pre @ w_up
        if wants_up:
            d_up = d_pre.T @ x
    return dx, d_up, d_down


def _fake_forward(x, w_up, w_down, slope):
    return x.new_empty(x.shape[0], w_down.shape[0]), x.new_empty(x.shape[0], w_up.shape[0])


def _fake_backward(dy, x, w_up, w_down, saved, slope, wants_x, wants_up, wants_down):
    given = ((x, wants_x), (w_up, wants_up), (w_down, wants_down))
    return tuple(tensor.new_empty(tensor.shape if wanted else (0,)) for tensor, wanted in given)


def _setup_context(ctx, inputs, output):
    x, w_up, w_down, ctx.slope = inputs
    _, saved = output
    ctx.mark_non_differentiable(saved)
    ctx.save_for_backward(x, w_up, w_down, saved)


def _backward(ctx, dy, _saved):
    wanted = ctx.needs_input_grad[:3]
    gradients = torch.ops.pgolf.mlp_backward(dy, *ctx.saved_tensors, ctx.slope, *wanted)
    return *(g if w else None for g, w in zip(gradients, wanted, strict=True)), None


torch.library.define("pgolf::mlp", "(Tensor x, Tensor w_up, Tensor w_down, float slope) -> (Tensor y, Tensor saved)")
torch.library.define(
    "pgolf::mlp_backward",
    "(Tensor dy, Tensor x, Tensor w_up, Tensor w_down, Tensor saved, float slope, bool wants_x, bool wants_up,"
    " bool wants_down) -> (Tensor dx, Tensor d_up, Tensor d_down)",
)
torch.library.impl("pgolf::mlp", "CPU", forward_torch)
torch.library.impl("pgolf::mlp_backward", "CPU", backward_torch)
torch.library.register_fake("pgolf::mlp", _fake_forward)
torch.library.register_fake("pgolf::mlp_backward", _fake_backward)
torch.library.register_autograd("pgolf::mlp", _backward, setup_context=_setup_context)
