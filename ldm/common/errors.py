"""What a user did, and what to do next: the one kind of error that is shown without a traceback."""

import re

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")  # also what turns the direction of writing


class UserError(Exception):
    """A mistake that the user can mend. The message names the cause and the next step.

    PyTorch raises a data worker's error anew, with the worker's traceback before the message: that is left out.
    """

    def __init__(self, message: str):
        _, raised, own = message.rpartition(f"{type(self).__module__}.{type(self).__name__}: ")
        lines = (own.rstrip() if raised else message).split("\n")
        super().__init__("\n".join(map(printable, lines)))


def printable(text: str) -> str:
    """With signs that would steer a terminal, which a file's name may hold, written out: a line end as \\n."""
    return _CONTROL.sub(lambda match: ascii(match[0])[1:-1], text)


def did_you_mean(word: str, known) -> str:
    """`" Did you mean 'steps'?"`, or the list of what is known where nothing is close."""
    import difflib

    known = sorted(str(k) for k in known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if close:
        return f" Did you mean '{close[0]}'?"
    return f" Known: {', '.join(known)}." if known else ""
