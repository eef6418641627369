"""The one way in which an artifact goes wrong."""

from pgolf.errors import PgolfError


class ArtifactError(PgolfError):
    """A file that cannot be read or made, told in one line."""
