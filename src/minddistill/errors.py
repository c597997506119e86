"""The one exception that stands for a user's mistake."""


class UserError(Exception):
    """A mistake the user can mend: one line that names the place, what was found and what was expected.

    The command line prints it without a traceback and exits with code 2.
    """
