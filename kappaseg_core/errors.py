"""The one error that a user's mistake ends in."""


class UserError(Exception):
    """A mistake at the border (configuration, file, command line).

    The message is one line: the value seen, the value wanted, the next step. The command line prints it and exits
    with status 2; it never prints a traceback for it.
    """
