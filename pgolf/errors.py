"""What a person is told when something cannot be done."""


class PgolfError(Exception):
    """Something a person must mend. Its text is one line: what was wrong, where, and what to do."""

    exit_code = 1


class UsageError(PgolfError):
    """The command line or a setting is wrong."""

    exit_code = 2
