"""huggingface_hub, whose errors become sentences."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from ldm.common.errors import UserError

_TRANSPORTS = ("httpx", "httpx2", "httpcore", "requests", "urllib3")  # of the versions of huggingface_hub


def client() -> Any:
    """The module huggingface_hub. Raises UserError if it isn't installed."""
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
    except ImportError:
        raise UserError("hf:// addresses and push_to_hub need huggingface_hub: pip install 'ldm[hub]'.") from None
    return huggingface_hub


def endpoint() -> str:
    """The address of the hub: HF_ENDPOINT, or huggingface.co."""
    return (os.environ.get("HF_ENDPOINT") or client().constants.ENDPOINT).rstrip("/")


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids requests."""
    return bool(client().constants.HF_HUB_OFFLINE)


def is_unreachable(error: Exception) -> bool:
    """Whether an error means that the hub didn't answer, rather than that it answered with a refusal."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return status >= 500
    of_transport = any(cls.__module__.split(".")[0] in _TRANSPORTS for cls in type(error).__mro__)
    return of_transport or isinstance(error, (ConnectionError, TimeoutError))


@contextlib.contextmanager
def explained(what: str, repository: str, next_step: str) -> Iterator[None]:
    """Turns the client's errors in the block into a UserError: `what` failed, why, and what to do.

    `next_step` is shown if the error itself doesn't tell what to do.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{what}: {_reason(error, repository) or f'{_first_line(error)}; {next_step}'}.") from error


def _reason(error: Exception, repository: str) -> str:
    """Cause and next step of the errors that a user can do something about; empty for others."""
    errors, where = client().errors, endpoint()
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError):
        return f"its owner restricts access: accept the terms at {where}/{repository}, and log in with `hf auth login`"
    if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 403):
        return (f"{where} has no {repository} that this login may use: check the name, or log in with `hf auth login` "
                "(or HF_TOKEN)")  # fmt: skip
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repository} has no such revision: give one of its branches or tags, or a commit's whole hash"
    return ""


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or 'no reason given').splitlines()[0][:200]}".rstrip(".")
