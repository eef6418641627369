"""How close is close: by the size of the error against the size of the answer, not element by element."""

import torch


def relative_rms(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Root mean square of the error over that of the expected values, in float64. A NaN gives infinity."""
    found, expected = found.detach().double().cpu(), expected.detach().double().cpu()
    assert found.shape == expected.shape, f"shape {tuple(found.shape)}, expected {tuple(expected.shape)}"
    error = (found - expected).pow(2).mean().sqrt()
    size = expected.pow(2).mean().sqrt()
    ratio = (error / size.clamp_min(1e-30)).item()
    return ratio if ratio == ratio else float("inf")


def assert_close(found: torch.Tensor, expected: torch.Tensor, ratio: float, what: str = "result") -> None:
    measured = relative_rms(found, expected)
    assert measured <= ratio, f"{what}: relative RMS error {measured:.3g}, allowed {ratio:.3g}"
