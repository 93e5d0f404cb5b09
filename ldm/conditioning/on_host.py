"""Conditions on the host, before a batch goes to the device: which ones are dropped, and captions as tensors."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from ldm.common.randomness import uniform


class Tokens(NamedTuple):
    """Captions as token `ids` (B, L) int64, with `mask` (B, L), True on tokens and False on padding."""

    ids: Tensor
    mask: Tensor


class States(NamedTuple):
    """Captions as the states of a frozen encoder: `tokens` (B, L, D), and `mask` (B, L) and `vector` (B, D) where the
    encoder has them."""

    tokens: Tensor
    mask: Tensor | None
    vector: Tensor | None


class HostPart(NamedTuple):
    """What the host needs to know of one condition: its column, the probability of dropping it, the function that turns
    captions into tensors if there is one, and the caption that takes the place of a dropped one."""

    column: str
    drop_prob: float
    encode: Any = None
    nothing: str = ""


class HostReader:
    """Prepares conditions of a batch on the host, so that the device needn't wait for it.

    It adds two entries by the names of `parts`. `drop` says which samples (B,) drop a condition, decided by (seed,
    position). `ready` has captions as tensors, with dropped ones replaced already. It holds no weights, so data workers
    can have a copy.
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
    """Which samples (B,) bool drop which condition: an independent coin for each condition with a share above 0."""
    return {name: uniform(seed, f"drop {name}", position) < share for name, share in shares.items() if share > 0}


def without(captions: list[str], drop: Tensor | None, nothing: str = "") -> list[str]:
    """The captions, with `nothing` in the place of those where `drop` (B,) is True."""
    if drop is None:
        return captions
    return [nothing if dropped else caption for caption, dropped in zip(captions, drop.tolist(), strict=True)]
