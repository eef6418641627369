"""The one way in which data goes wrong: a line for the person at the terminal."""

from pgolf.errors import PgolfError


class DataError(PgolfError):
    """Bad input, told in one line: what is wrong, where, and what to do."""
