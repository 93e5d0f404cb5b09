"""What a user did, and what to do next: the one kind of error that is shown without a traceback."""


class UserError(Exception):
    """A mistake that the user can mend. The message names the cause and the next step.

    PyTorch raises a data worker's error anew, with the worker's traceback before the message: that is left out.
    """

    def __init__(self, message: str):
        _, raised, own = message.rpartition(f"{type(self).__module__}.{type(self).__name__}: ")
        super().__init__(own.rstrip() if raised else message)


def did_you_mean(word: str, known) -> str:
    """`" Did you mean 'steps'?"`, or the list of what is known where nothing is close."""
    import difflib

    known = sorted(str(k) for k in known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if close:
        return f" Did you mean '{close[0]}'?"
    return f" Known: {', '.join(known)}." if known else ""
