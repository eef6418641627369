"""What a person is told when something cannot be done."""

# the exit code of a stage that did its work, but not within its clock
OVER_LIMIT = 3


class PgolfError(Exception):
    """Something a person must mend. Its text is one line: what was wrong, where, and what to do."""

    exit_code = 1


class UsageError(PgolfError):
    """The command line or a setting is wrong."""

    exit_code = 2
