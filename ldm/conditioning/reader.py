"""What the host makes of a batch before it goes to the device: which conditions are dropped, and words as numbers."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from ldm.common.randomness import uniform


class Tokens(NamedTuple):
    """Captions as `ids` (B, L) int64, with `mask` (B, L), True on tokens."""

    ids: Tensor
    mask: Tensor


class States(NamedTuple):
    """Captions as a frozen encoder's states `tokens` (B, L, D), with `mask` (B, L) and `vector` (B, D) where it has
    them."""

    tokens: Tensor
    mask: Tensor | None
    vector: Tensor | None


class PartReader(NamedTuple):
    """Of one condition: its column, how often it is dropped, what makes tensors of captions (None: nothing), and what
    stands for a caption that is dropped."""

    column: str
    drop_prob: float
    encode: Any = None
    nothing: str = ""


class Reader:
    """Adds to a batch on the host what the `parts` of a conditioner would otherwise make the device wait for.

    `drop` has the coins (B,) of each part, fixed by (seed, position), and `ready` the captions of each part that reads
    captions, those dropped already empty, as tensors. It holds no weights, so that data workers can have it.
    """

    def __init__(self, parts: Mapping[str, PartReader], seed: int):
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
    """Which samples (B,) bool drop which condition: an independent coin for each that has a share above 0."""
    return {name: uniform(seed, f"drop {name}", position) < share for name, share in shares.items() if share > 0}


def without(captions: list[str], drop: Tensor | None, nothing: str = "") -> list[str]:
    """The captions, `nothing` where `drop` (B,) is True."""
    if drop is None:
        return captions
    return [nothing if dropped else caption for caption, dropped in zip(captions, drop.tolist(), strict=True)]
