"""What happens to conditions on the host, before a batch goes to the device: dropping, and captions to tensors."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from ldm.common.randomness import uniform


class Tokens(NamedTuple):
    """Captions as token `ids` (B, L) int64, with a `mask` (B, L) that is True on tokens and False on padding."""

    ids: Tensor
    mask: Tensor


class States(NamedTuple):
    """Captions as the states of a frozen encoder: `tokens` (B, L, D), and `mask` (B, L) and `vector` (B, D) if the
    encoder has them."""

    tokens: Tensor
    mask: Tensor | None
    vector: Tensor | None


class HostPart(NamedTuple):
    """What the host needs to know about one condition.

    `encode` turns captions into tensors, if there is such a function, and `nothing` replaces a dropped caption.
    """

    column: str
    drop_prob: float
    encode: Any = None
    nothing: str = ""


class HostReader:
    """Prepares a batch's conditions on the host, so that later the host and the device don't wait for each other.

    It adds two entries, mappings by the names of `parts`. `drop` has the samples (B,) bool that drop a condition,
    decided by (seed, position). `ready` has captions as tensors, in which dropped ones are replaced already. It holds
    no weights, so data workers can have a copy.
    """

    def __init__(self, parts: Mapping[str, HostPart], seed: int):
        self.parts, self.seed = dict(parts), seed

    def __call__(self, batch: dict[str, Any], training: bool) -> dict[str, Any]:
        drop = coins(self.seed, batch["position"], self._shares()) if training else {}
        ready = {}
        for name, part in self.parts.items():
            captions = batch.get(part.column)
            if isinstance(captions, list):
                captions = without(captions, drop.pop(name, None), part.nothing)
                ready[name] = part.encode(captions) if part.encode else captions
        return batch | {"drop": drop, "ready": ready}

    def _shares(self) -> dict[str, float]:
        return {name: part.drop_prob for name, part in self.parts.items()}


def coins(seed: int, position: Tensor, shares: Mapping[str, float]) -> dict[str, Tensor]:
    """{condition: the samples (B,) bool that drop it}, by an independent coin for each with a share above 0."""
    return {name: uniform(seed, f"drop {name}", position) < share for name, share in shares.items() if share > 0}


def without(captions: list[str], drop: Tensor | None, nothing: str = "") -> list[str]:
    """The captions, replaced by `nothing` where `drop` (B,) is True."""
    if drop is None:
        return captions
    return [nothing if dropped else caption for caption, dropped in zip(captions, drop.tolist(), strict=True)]
