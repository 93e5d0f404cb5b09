"""All conditions of a model: the batch in, one `Cond` out."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ldm.conditioning.parts import Part
from ldm.errors import UserError
from ldm.networks import Cond
from ldm.randomness import uniform
from ldm.registry import register


@register
class Conditioner(nn.Module):
    """Named parts, each with its own dropout. Vectors are joined over channels, tokens over places, maps over
    channels."""

    def __init__(self, parts: Mapping[str, Part] | None = None):
        super().__init__()
        self.parts: Mapping[str, Part] = nn.ModuleDict(parts or {})  # type: ignore[assignment]
        dims = {name: part.token_dim for name, part in self.parts.items() if part.token_dim}
        if len(set(dims.values())) > 1:
            raise UserError(f"conditioner: parts that give tokens must have one dim; these differ: {dims}")
        self.token_dim = next(iter(dims.values()), None)
        self.vector_dim = sum(part.vector_dim or 0 for part in self.parts.values()) or None
        self.concat_channels = sum(part.concat_channels for part in self.parts.values())

    @property
    def needs(self) -> tuple[str, ...]:
        """The batch keys that the parts read."""
        return tuple(part.column for part in self.parts.values())

    def forward(self, batch: Mapping[str, Any], drop: Mapping[str, Tensor] | None = None) -> Cond:
        """The conditions of a batch; `drop` says by part which samples (B,) bool get the null condition."""
        drop = drop or {}
        return merge([part(batch[part.column], drop.get(name)) for name, part in self.parts.items()])

    def coins(self, seed: int, position: Tensor) -> dict[str, Tensor]:
        """Which samples drop which condition: one independent coin a part, fixed by (seed, position)."""
        return {
            name: uniform(seed, f"drop {name}", position) < part.drop_prob
            for name, part in self.parts.items()
            if part.drop_prob > 0
        }

    def null(self, n: int) -> Cond:
        """The null condition for `n` samples."""
        return self({part.column: _to(part.null_values(n), self._device()) for part in self.parts.values()})

    def parse(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """What a user passes by column, with the null value where a condition isn't given.

        Every value is a list of one entry a picture. Raises UserError for a condition that this model doesn't have.
        """
        if unknown := [key for key in given if key not in self.needs]:
            has = ", ".join(self.needs) or "no condition at all"
            raise UserError(f"this model can't take {', '.join(unknown)}; it was trained with {has}.")
        n = max((len(values) for values in given.values()), default=1)
        batch = {}
        for part in self.parts.values():
            values = given.get(part.column)
            batch[part.column] = part.null_values(n) if values is None else part.parse(values)
            batch[part.column] = _to(batch[part.column], self._device())
        return batch

    def _device(self) -> torch.device:
        return next((p.device for p in self.parameters()), torch.device("cpu"))


def merge(conds: list[Cond]) -> Cond:
    """Several conditions of the same samples in one."""
    masks = [_mask(c) for c in conds if c.tokens is not None]
    return Cond(
        vector=_join([c.vector for c in conds], 1),
        tokens=_join([c.tokens for c in conds], 1),
        mask=torch.cat(masks, 1) if masks else None,
        concat=_join([c.concat for c in conds], 1),
        control={name: t for c in conds for name, t in c.control.items()},
    )


def _mask(cond: Cond) -> Tensor:
    if cond.mask is not None:
        return cond.mask
    assert cond.tokens is not None
    return cond.tokens.new_ones(cond.tokens.shape[:2], dtype=torch.bool)


def _join(tensors: list[Tensor | None], dim: int) -> Tensor | None:
    present = [t for t in tensors if t is not None]
    return torch.cat(present, dim) if present else None


def _to(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value
