"""The one error of a label cache that a user can meet."""

from __future__ import annotations


class CacheError(Exception):
    """A cache that cannot be written, found, trusted or used as asked.

    The message is one line: what was seen, what was wanted, the next step. (This package imports nothing of the
    project, so it has its own error; the command line treats it like every other mistake at the border.)
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


def reason(error: BaseException) -> str:
    """Why a system call or library failed, in one line without paths and numbers where the system gives a text."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__
