"""All conditions of a model together: from a batch to one `Cond`."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ldm.common.devices import send
from ldm.common.errors import UserError
from ldm.common.registry import register
from ldm.conditioning.on_host import HostPart, HostReader, coins
from ldm.conditioning.part import EncodeFn, Part
from ldm.networks import Cond


@register
class Conditioner(nn.Module):
    """The conditions of a model by name, each with its own dropout probability.

    Their vectors and maps are concatenated over channels, their tokens over the sequence.
    """

    def __init__(self, parts: Mapping[str, Part] | None = None):
        super().__init__()
        self.parts: Mapping[str, Part] = nn.ModuleDict(parts or {})  # type: ignore[assignment]
        dims = {name: part.token_dim for name, part in self.parts.items() if part.token_dim}
        if len(set(dims.values())) > 1:
            raise UserError(
                f"conditioner: conditions with tokens differ in dim ({dims}): give all of them the same dim."
            )
        self.token_dim = next(iter(dims.values()), None)
        self.vector_dim = sum(part.vector_dim or 0 for part in self.parts.values()) or None
        self.concat_channels = sum(part.concat_channels for part in self.parts.values())
        # Shows the device even of a conditioner without parameters. It is created on the CPU, so that a model built on
        # the device "meta" has a real one too.
        self.register_buffer("_device_marker", torch.zeros(0, device="cpu"), persistent=False)

    @property
    def device(self) -> torch.device:
        """The device of the model, on which conditions are made."""
        return self._device_marker.device

    @property
    def needs(self) -> tuple[str, ...]:
        """The keys that a batch of training data must have."""
        return tuple(dict.fromkeys(key for part in self.parts.values() for key in part.needs))

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names under which a user passes values."""
        return tuple(dict.fromkeys(key for part in self.parts.values() for key in part.inputs))

    def forward(self, batch: Mapping[str, Any], drop: Mapping[str, Tensor] | None = None) -> Cond:
        """The conditions of a prepared batch. By name, `drop` (B,) bool is True for samples that get the null one."""
        drop, ready = drop or {}, batch.get("ready", {})
        if twice := ready.keys() & drop.keys():
            raise ValueError(
                f"{', '.join(twice)}: captions are dropped on the host already; use `unguided` for null conditions"
            )
        conds = []
        for name, part in self.parts.items():
            values, dropped = (ready[name] if name in ready else batch[part.column]), drop.get(name)
            if name in ready and isinstance(values, list):  # captions of data, in which brackets aren't weights
                dropped = torch.zeros(len(values), dtype=torch.bool)
            conds.append(part(values, dropped))
        return merge(conds)

    def unguided(self, batch: Mapping[str, Any], drop: Mapping[str, Tensor] | None = None) -> Cond:
        """The unconditional side of classifier-free guidance.

        Conditions that follow guidance are replaced by their null condition; the others stay, except where they are in
        `drop`. Captions are replaced on the host, so that it doesn't wait for the device.
        """
        guided = {name: part for name, part in self.parts.items() if part.follows_guidance}
        kept = {name: samples for name, samples in (drop or {}).items() if name not in guided}
        batch = {**batch, "ready": {k: v for k, v in batch.get("ready", {}).items() if k not in guided}}
        for name, part in guided.items():
            values = batch[part.column]
            if isinstance(values, list):
                batch[part.column] = part.null_values(len(values))
            else:
                kept[name] = values.new_ones(len(values), dtype=torch.bool)
        return self(batch, kept)

    def reader(self, seed: int) -> HostReader:
        """The function that adds `drop` and `ready` to a batch on the host or in a data worker: see `HostReader`."""
        parts = {
            name: HostPart(part.column, part.drop_prob, part.reader(), part.nothing)
            for name, part in self.parts.items()
        }
        return HostReader(parts, seed)

    def prepare(self, batch: Mapping[str, Any], encode: EncodeFn, seed: int) -> dict[str, Any]:
        """The batch with the columns that conditions compute from others: masked images, low resolutions, embeddings.

        `encode` maps images to whitened latents. Random numbers depend only on (seed, batch["position"]).
        """
        made = {
            part.column: part.prepare(batch, encode, seed)
            for part in self.parts.values()
            if part.sources and part.column not in batch
        }
        return {**batch, **made}

    def coins(self, seed: int, position: Tensor) -> dict[str, Tensor]:
        """{condition: the samples (B,) bool that drop it}, by independent coins decided by (seed, position)."""
        return coins(seed, position, {name: part.drop_prob for name, part in self.parts.items()})

    def null(self, n: int, size: tuple[int, int] | None = None) -> Cond:
        """The null condition for `n` images of `size` (height, width) in pixels, by default that of the data."""
        return self(self.null_batch(n, size))

    def null_batch(self, n: int, size: tuple[int, int] | None = None) -> dict[str, Any]:
        """A batch of null values for `prepare`: see `null`."""
        batch: dict[str, Any] = {}
        for part in self.parts.values():
            batch |= {key: _to(value, self.device) for key, value in part.null_inputs(n, size).items()}
        return batch

    def check(self, given: Iterable[str]) -> None:
        """Raises UserError for names of conditions that this model doesn't have."""
        if unknown := [key for key in given if key not in self.inputs]:
            has = ", ".join(self.inputs) or "no condition at all"
            raise UserError(f"this model can't take {', '.join(unknown)}; it was trained with {has}.")

    def parse(self, given: Mapping[str, Any], size: tuple[int, int] | None = None) -> dict[str, Any]:
        """A batch of the values that a user passes, `given` by the names in `inputs`, with null values for the others.

        Every value of `given` is a list with one entry for each image. Raises UserError for a condition that this model
        doesn't have.
        """
        self.check(given)
        n = max((len(values) for values in given.values()), default=1)
        batch: dict[str, Any] = {}
        for part in self.parts.values():
            named = [key for key in part.inputs if key in given]
            batch |= {key: _to(part.parse(given[key]), self.device) for key in named}
            if not named:
                batch |= {key: _to(value, self.device) for key, value in part.null_inputs(n, size).items()}
        return batch

    def examples(self, batch: Mapping[str, Any], seed: int = 0) -> dict[str, list]:
        """The values that a user would pass to `parse` to generate the samples of a batch of data.

        If the data have no masks they are random, decided by (seed, row).
        """
        n = max((len(values) for values in batch.values()), default=0)
        batch = {"position": torch.arange(n), **batch}
        passed: dict[str, Any] = {}
        for part in self.parts.values():
            passed |= part.example(batch, seed)
        return {key: _listed(values) for key, values in passed.items()}

    def columns(self, name: str) -> set[str]:
        """The columns that `name` stands for: the name of a condition, of a column, or of a value that a user passes.

        Raises UserError for any other name.
        """
        known: dict[str, set[str]] = {}
        for part_name, part in self.parts.items():
            for word in (part_name, part.column, *part.inputs):
                known.setdefault(word, set()).add(part.column)
        if name not in known:
            has = ", ".join(self.parts) or "no condition at all"
            raise UserError(f"this model has no condition '{name}'; it has {has}.")
        return known[name]

    _device_marker: Tensor


def merge(conds: list[Cond]) -> Cond:
    """Several conditions of the same samples joined into one."""
    masks = [_mask(c) for c in conds if c.tokens is not None]
    return Cond(
        vector=_join([c.vector for c in conds], 1),
        tokens=_join([c.tokens for c in conds], 1),
        mask=torch.cat(masks, 1) if masks else None,
        concat=_join([c.concat for c in conds], 1),
        base=next((c.base for c in conds if c.base is not None), None),
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


def _listed(values: Any) -> list:
    """A list with one entry for each sample: numbers as such, images as tensors."""
    return values.tolist() if isinstance(values, Tensor) and values.ndim == 1 else list(values)


def _to(value: Any, device: torch.device) -> Any:
    return send(value, device) if isinstance(value, Tensor) else value
