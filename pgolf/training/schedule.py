"""Learning rate and momentum as pure functions of the step and the clock."""

from pgolf.config import TrainingSettings


def multiplier(settings: TrainingSettings, *, step: int, elapsed: float, limit: float) -> float:
    """What every learning rate is multiplied with: 1, then a straight line to 0 at the end, but never below lr_floor.

    By the clock, `limit` seconds long, the line takes warmdown_share of it, or as long as warmdown_steps steps take
    at the average pace so far; a clock too short for that begins below 1. With a fixed number of steps it is a share
    of them, or the last warmdown_steps.
    """
    if settings.steps:
        left = float(settings.steps - step)
        length = settings.warmdown_share * settings.steps or min(settings.warmdown_steps, settings.steps)
    else:
        left = limit - elapsed
        length = settings.warmdown_share * limit or settings.warmdown_steps * elapsed / max(step, 1)
    if length <= 0:
        return 1.0
    return min(1.0, max(settings.lr_floor, left / length))


def muon_momentum(settings: TrainingSettings, step: int) -> float:
    """A straight line from muon_momentum_start to muon_momentum over the first muon_momentum_steps steps."""
    share = min(step / settings.muon_momentum_steps, 1.0) if settings.muon_momentum_steps else 1.0
    return (1 - share) * settings.muon_momentum_start + share * settings.muon_momentum
