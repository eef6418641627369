"""What several operators ask of their tensors."""

import torch


def exact_dtype(device: torch.device | str) -> torch.dtype:
    """The precision of probabilities: float64 on a CPU, float32 on a GPU, where float64 is slow."""
    return torch.float64 if torch.device(device).type == "cpu" else torch.float32


def check_range(ids: torch.Tensor, least: int, most: int, what: str) -> None:
    """Refuse ids that would index outside their table. For a CPU, and in numpy: torch would wake its threads for it."""
    if ids.numel():
        values = ids.detach().numpy()
        low, high = int(values.min()), int(values.max())
        if low < least or high > most:
            raise ValueError(f"{what} reach from {low} to {high}; they must lie in {least}..{most}")
