"""What several operators ask of their tensors."""

from collections.abc import Mapping

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


def require_tensors(function: str, required: Mapping[str, object], optional: Mapping[str, object] | None = None) -> None:
    """Raise a TypeError that names the first argument that is not a tensor, and what to pass instead.

    Args:
        function: the name of the public function, for the message
        required: arguments by name that must be tensors
        optional: arguments by name that may be None
    """
    given = {**required, **{name: value for name, value in (optional or {}).items() if value is not None}}
    for name, value in given.items():
        if not isinstance(value, torch.Tensor):
            raise TypeError(f"{function}: {name} must be a torch.Tensor, not {_kind(value)}{_advice(name, value)}")


def _kind(value: object) -> str:
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__.partition('.')[0]}'s {kind.__name__}"


def _advice(name: str, value: object) -> str:
    if isinstance(value, torch.nn.Module):
        return f"; pass its weight ({name}.weight)" if hasattr(value, "weight") else ""
    if hasattr(value, "__array__"):
        return f"; torch.from_numpy({name}) makes one without a copy"
    return f"; torch.tensor({name}) makes one" if isinstance(value, (list, tuple, int, float)) else ""
