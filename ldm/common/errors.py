"""Errors that are shown to the user in one line, without a traceback."""

import re

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")  # with those that reverse the direction of text


class UserError(Exception):
    """A mistake that the user can fix. The message names the cause and the next step.

    PyTorch raises the error of a data worker again, with the worker's traceback before the message; it is removed.
    """

    def __init__(self, message: str):
        _, raised, own = message.rpartition(f"{type(self).__module__}.{type(self).__name__}: ")
        lines = (own.rstrip() if raised else message).split("\n")
        super().__init__("\n".join(map(printable, lines)))


def printable(text: str) -> str:
    """`text` with control characters escaped, a line end as \\n: those in a file's name could control a terminal."""
    return _CONTROL.sub(lambda match: ascii(match[0])[1:-1], text)


def did_you_mean(word: object, known) -> str:
    """`" Did you mean 'steps'?"` for a word near one of `known`, else the list of them, to be added to a message."""
    import difflib

    known = sorted(str(k) for k in known)
    close = difflib.get_close_matches(str(word), known, n=1, cutoff=0.6)
    if close:
        return f" Did you mean '{close[0]}'?"
    return f" Known: {', '.join(known)}." if known else ""
