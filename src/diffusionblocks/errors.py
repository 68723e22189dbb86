"""The one exception that a user is meant to read."""


class UserError(Exception):
    """Something the user can mend: one line with what was found, what was expected, the mend.

    The command line prints it without a traceback and exits with code 2. Anything
    else that is raised is a fault of the suite and keeps its traceback.
    """
