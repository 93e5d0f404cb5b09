"""What a network reads in addition to the noisy latent. Roles have names; nothing is guessed from a tensor's rank."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_BY_CONTROLNET = ("control", "control_weights")
_TENSORS = ("vector", "tokens", "mask", "concat", "base", "guidance")


@dataclass(frozen=True)
class Cond:
    """One batch of conditions; None means that there is no such condition.

    `vector` (B, D) is added to the time embedding (class, pooled text). `tokens` (B, L, D) are attended to where `mask`
    (B, L) is True (text, class token, image tokens). `concat` (B, C, h, w) is concatenated with the latent (semantic
    map, masked image, low resolution). `base` (B, C, h, w) is an image that only lacks details: the network predicts
    the difference from it. `guidance` (B,) is the guidance scale, for networks that have it as a condition. `control`
    maps a ControlNet's name to its control image (B, C, H, W), and `control_weights` to the weights (B, outputs) of its
    residuals, if they are weighted.
    """

    vector: Tensor | None = None
    tokens: Tensor | None = None
    mask: Tensor | None = None
    concat: Tensor | None = None
    base: Tensor | None = None
    guidance: Tensor | None = None
    control: Mapping[str, Tensor] = field(default_factory=dict)
    control_weights: Mapping[str, Tensor] = field(default_factory=dict)

    def cat(self, *others: "Cond") -> "Cond":
        """The batches one after the other; shorter token sequences are padded, and the padding is masked."""
        parts = (self, *others)
        for name in _BY_CONTROLNET:
            if any(getattr(p, name).keys() != getattr(self, name).keys() for p in others):
                raise ValueError("conditions can't be joined: they belong to different ControlNets")
        length = max((p.tokens.shape[1] for p in parts if p.tokens is not None), default=0)
        parts = tuple(_pad_tokens(p, length) for p in parts)
        joined: dict[str, Any] = {name: _cat([getattr(p, name) for p in parts], name) for name in _TENSORS}
        for name in _BY_CONTROLNET:
            joined[name] = {key: torch.cat([getattr(p, name)[key] for p in parts]) for key in getattr(self, name)}
        return Cond(**joined)

    def map(self, function) -> "Cond":
        """Every tensor passed through `function`: `cond.map(lambda t: t[:4])`, `cond.map(lambda t: t.to("cuda"))`."""
        tensors: dict[str, Any] = {n: None if (t := getattr(self, n)) is None else function(t) for n in _TENSORS}
        for name in _BY_CONTROLNET:
            tensors[name] = {key: function(tensor) for key, tensor in getattr(self, name).items()}
        return Cond(**tensors)

    def without_control(self, names: Collection[str]) -> "Cond":
        """The same condition without the control images of the ControlNets `names`."""
        kept: dict[str, Any] = {
            name: {k: t for k, t in getattr(self, name).items() if k not in names} for name in _BY_CONTROLNET
        }
        return replace(self, **kept)

    def padded(self, multiple: int) -> "Cond":
        """The same condition with tokens padded to a multiple of `multiple`; the padding is masked, so no result
        changes."""
        return self if self.tokens is None else _pad_tokens(self, -(-self.tokens.shape[1] // multiple) * multiple)

    def lowered(self, dtype: torch.dtype) -> "Cond":
        """The same condition in `dtype`, for a network that computes in it.

        `base`, which the denoiser adds, and `guidance`, whose embedding is float32, stay as they are.
        """
        if dtype == torch.float32:
            return self
        return replace(
            self.map(lambda t: t.to(dtype) if t.is_floating_point() else t), base=self.base, guidance=self.guidance
        )


def _pad_tokens(cond: Cond, length: int) -> Cond:
    if cond.tokens is None or (cond.tokens.shape[1] == length and cond.mask is not None):
        return cond
    b, n, _ = cond.tokens.shape
    mask = cond.mask if cond.mask is not None else cond.tokens.new_ones(b, n, dtype=torch.bool)
    tokens = F.pad(cond.tokens, (0, 0, 0, length - n))  # (B, length, D)
    return replace(cond, tokens=tokens, mask=F.pad(mask, (0, length - n)))


def _cat(tensors: list[Tensor | None], name: str) -> Tensor | None:
    present = [t for t in tensors if t is not None]
    if present and len(present) < len(tensors):
        raise ValueError(f"conditions can't be joined: only some have '{name}'")
    return torch.cat(present) if present else None
