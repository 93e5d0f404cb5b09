"""What is to be generated: conditions, seeds, size and the way of sampling, read and checked before any work."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

from torch import Tensor

from ldm.adapters import ControlImages
from ldm.common.annotations import check_argument, check_guidance
from ldm.common.errors import UserError
from ldm.conditioning import Conditions, conditions_of
from ldm.diffusion.options import sampling_kinds
from ldm.model.autoguidance import conditions_of_guide
from ldm.model.distilled import check_few, warn_of_negative
from ldm.model.initial_image import InitialImage
from ldm.model.inputs import Size, fills, size_of

DEFAULTS: dict[str, Any] = {"sampler": "dpmpp_2m", "steps": 20, "guidance": 1.0, "spacing": None, "shift": 1.0}
_SHARED = (*DEFAULTS, "interval", "rescale", "autoguidance")  # by all samplers


@dataclass(frozen=True)
class Sampling:
    """How it is sampled. `shift` "auto" is by the size; `own` are the sampler's own options, such as eta."""

    sampler: str
    steps: int
    guidance: Any
    spacing: str | None = None
    shift: float | str = 1.0
    interval: tuple[float, float] | None = None
    rescale: float = 0.0
    autoguidance: float | None = None
    own: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.interval is not None and not self.interval[0] < self.interval[1]:
            raise UserError(f"interval={list(self.interval)}: guidance lies between a lower and a higher noise level.")


@dataclass(frozen=True)
class Request:
    """`len(seeds)` images to be generated, each row of everything below being one.

    `size` is height and width in pixels. `guide` are the conditions for the worse model of autoguidance.
    """

    conditions: Conditions
    seeds: tuple[int, ...]
    size: tuple[int, int]
    sampling: Sampling
    initial: InitialImage | None = None
    control: ControlImages | None = None
    guide: Conditions | None = None

    def take(self, rows: Tensor) -> "Request":
        """Some of the images."""
        return replace(
            self,
            conditions=self.conditions.take(rows),
            seeds=tuple(self.seeds[i] for i in rows.tolist()),
            initial=self.initial and self.initial.take(rows),
            control=self.control and self.control.take(rows),
            guide=self.guide and self.guide.take(rows),
        )


def request_of(
    model: Any,
    given: Mapping[str, list],
    options: Mapping[str, Any],
    *,
    n: int = 1,
    negative: str | Sequence[str] | None = None,
    seed: int | Sequence[int] = 0,
    size: Size = None,
    initial: InitialImage | None = None,
    control: ControlImages | None = None,
) -> Request:
    """`n` images of each of the conditions `given` by column, sampled by the model's own way changed by `options`."""
    pixels = size_of(model, given, initial, size)
    conditions = conditions_of(model.conditioner, given, n, negative=negative, size=pixels)
    guide = conditions_of_guide(model, given, n, pixels)
    if initial is not None:
        initial = initial.repeated(conditions.count)
        if initial.mask is not None and fills(model):
            conditions = conditions.to_fill(initial.image, initial.mask)
        if initial.mask is not None and guide is not None and fills(model.guide[0]):
            guide = guide.to_fill(initial.image, initial.mask)
    control = control and control.repeated(conditions.count)
    seeds, sampling = seeds_of(seed, conditions.count), sampling_of(model, options)
    warn_of_negative(model.denoiser.network, model.distilled, sampling.guidance, negative)
    return Request(conditions, seeds, pixels, sampling, initial=initial, control=control, guide=guide)


def sampling_of(model: Any, options: Mapping[str, Any]) -> Sampling:
    """The model's own way of sampling, changed by `options`, of which None are left out."""
    chosen = {k: v for k, v in options.items() if v is not None}
    kinds = sampling_kinds() | {"autoguidance": float}
    for key, value in chosen.items():
        check_argument(value, kinds.get(key, Any), key)
        if key in ("guidance", "autoguidance"):
            check_guidance(value, key)
    own = model.sampling
    if chosen.get("sampler", own["sampler"]) != own["sampler"]:  # whose own options another sampler doesn't know
        own = {k: v for k, v in own.items() if k in _SHARED}
    if model.guide:  # in place of classifier-free guidance, unless that is given
        own = own | {"guidance": 1.0}
    settled = own | chosen
    if "spacing" not in chosen and settled["spacing"] == "table" and settled["steps"] != model.sampling["steps"]:
        settled["spacing"] = None  # the table is of the model's own steps
    check_few(model.distilled, settled)
    shared = {k: v for k, v in settled.items() if k in _SHARED}
    return Sampling(**shared, own={k: v for k, v in settled.items() if k not in _SHARED})


def seeds_of(seed: int | Sequence[int], n: int) -> tuple[int, ...]:
    """One seed an image: `seed`, `seed` + 1, ..., or those that are given."""
    seed = seed.tolist() if isinstance(seed, Tensor) else seed
    given = list(seed) if isinstance(seed, Sequence) else [seed]
    if not all(isinstance(one, Integral) for one in given):
        raise UserError(f"seed={seed}: give a whole number, or one an image.")
    seeds = tuple(int(seed) + i for i in range(n)) if isinstance(seed, Integral) else tuple(int(one) for one in given)
    if len(seeds) != n:
        raise UserError(f"{len(seeds)} seeds for {n} images; give one number, or one an image.")
    if seeds and (min(seeds) < -(2**63) or max(seeds) >= 2**63):
        raise UserError(f"seed={seed} is too large: a seed has at most 63 bits.")
    return seeds
