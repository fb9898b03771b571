"""The one exception that means: the user can mend this."""


class UserError(Exception):
    """A user's mistake or bad data.

    Its message is one sentence: what, where (file, row, rank) and what to do. The commands print it
    without a traceback and exit with code 1.
    """
