"""What goes wrong in training, told in one line to the person at the terminal."""

from pgolf.errors import PgolfError


class TrainingError(PgolfError):
    """Training cannot begin, or cannot go on: what is wrong, where, and what to do."""


class CheckpointError(TrainingError):
    """A checkpoint that cannot be continued from."""
