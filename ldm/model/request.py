"""A request for images, checked before any work: conditions, seeds, size and sampling."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import Any

from torch import Tensor

from ldm.adapters import ControlImages
from ldm.common.annotations import check_argument, check_guidance
from ldm.common.errors import UserError
from ldm.conditioning import Conditions, conditions_of
from ldm.diffusion.sampling_options import sampling_kinds
from ldm.model.autoguidance import conditions_of_guide
from ldm.model.distilled import check_few, warn_of_negative
from ldm.model.initial_image import InitialImage
from ldm.model.inputs import Size, fills, negatives_of, size_of

DEFAULTS: dict[str, Any] = {"sampler": "dpmpp_2m", "steps": 20, "guidance": 1.0, "spacing": None, "shift": 1.0}
_SHARED = (*DEFAULTS, "interval", "rescale", "autoguidance")  # the options that all samplers have


@dataclass(frozen=True)
class Sampling:
    """How to sample.

    `guidance` is a scale, or a scale for each condition by name. With `shift` "auto" it depends on the size of the
    image. `interval` are the noise levels between which there is guidance. `options` are those that only this sampler
    has, such as eta.
    """

    sampler: str
    steps: int
    guidance: float | Mapping[str, float]
    spacing: str | None = None
    shift: float | str = 1.0
    interval: tuple[float, float] | None = None
    rescale: float = 0.0
    autoguidance: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.interval is not None and not self.interval[0] < self.interval[1]:
            raise UserError(f"interval={list(self.interval)}: give a lower and a higher noise level for guidance.")


@dataclass(frozen=True)
class Request:
    """Images to be generated: image i has `seeds[i]` and row i of the conditions and of the given images.

    `size` is (height, width) in pixels. `guide` has the conditions of the worse model in autoguidance.
    """

    conditions: Conditions
    seeds: tuple[int, ...]
    size: tuple[int, int]
    sampling: Sampling
    initial: InitialImage | None = None
    control: ControlImages | None = None
    guide: Conditions | None = None

    def take(self, rows: Tensor) -> "Request":
        """The request for some of the images, by their indices `rows`."""
        return replace(
            self,
            conditions=self.conditions.take(rows),
            seeds=tuple(self.seeds[i] for i in rows.tolist()),
            initial=None if self.initial is None else self.initial.take(rows),
            control=None if self.control is None else self.control.take(rows),
            guide=None if self.guide is None else self.guide.take(rows),
        )


def request_of(
    model: Any,
    given: Mapping[str, list],
    options: Mapping[str, Any],
    *,
    n: int = 1,
    negative: str | Sequence[str] | Mapping[str, Any] | None = None,
    seed: int | Sequence[int] = 0,
    size: Size = None,
    initial: InitialImage | None = None,
    control: ControlImages | None = None,
) -> Request:
    """A request for `n` images of each of the conditions in `given`, lists by column.

    They are sampled as `model.sampling` says, except for `options`. `negative` is as for `negatives_of`. Raises
    UserError for inputs that the model can't take.
    """
    pixels = size_of(model, given, initial, size)
    unlike = negatives_of(model, negative, pixels)
    conditions = conditions_of(model.conditioner, given, n, negative=unlike, size=pixels)
    guide = conditions_of_guide(model, given, n, pixels)
    if initial is not None:
        initial = initial.repeated(conditions.count)
        if initial.mask is not None and fills(model):
            conditions = conditions.to_fill(initial.image, initial.mask)
        if initial.mask is not None and guide is not None and fills(model.guide[0]):
            guide = guide.to_fill(initial.image, initial.mask)
    if control is not None:
        control = control.repeated(conditions.count)
    seeds, sampling = seeds_of(seed, conditions.count), sampling_of(model, options)
    if unlike:
        warn_of_negative(model.denoiser.network, model.distilled, sampling.guidance)
    return Request(conditions, seeds, pixels, sampling, initial=initial, control=control, guide=guide)


def sampling_of(model: Any, options: Mapping[str, Any]) -> Sampling:
    """How to sample: as `model.sampling` says, except for `options` that aren't None."""
    chosen = {k: v for k, v in options.items() if v is not None}
    kinds = sampling_kinds() | {"autoguidance": float}
    for key, value in chosen.items():
        check_argument(value, kinds.get(key, Any), key)
        if key in ("guidance", "autoguidance"):
            check_guidance(value, key)
    defaults = model.sampling
    if chosen.get("sampler", defaults["sampler"]) != defaults["sampler"]:
        defaults = {k: v for k, v in defaults.items() if k in _SHARED}  # another sampler hasn't the others
    if model.guide:
        defaults = defaults | {"guidance": 1.0}  # autoguidance takes its place, unless guidance is given too
    settled = defaults | chosen
    if "spacing" not in chosen and settled["spacing"] == "table" and settled["steps"] != model.sampling["steps"]:
        settled["spacing"] = None  # the table has as many levels as the model's own number of steps
    check_few(model.distilled, settled)
    shared = {k: v for k, v in settled.items() if k in _SHARED}
    return Sampling(**shared, options={k: v for k, v in settled.items() if k not in _SHARED})


def seeds_of(seed: int | Sequence[int], n: int) -> tuple[int, ...]:
    """The seeds of `n` images: `seed`, `seed` + 1, ..., or those in a sequence of `n`. Raises UserError for others."""
    seed = seed.tolist() if isinstance(seed, Tensor) else seed
    given = list(seed) if isinstance(seed, Sequence) else [seed]
    if not all(isinstance(one, Integral) for one in given):
        raise UserError(f"seed={seed}: give a whole number, or one for each image.")
    seeds = tuple(int(seed) + i for i in range(n)) if isinstance(seed, Integral) else tuple(int(one) for one in given)
    if len(seeds) != n:
        raise UserError(f"{len(seeds)} seeds for {n} images; give one number, or one for each image.")
    if seeds and (min(seeds) < -(2**63) or max(seeds) >= 2**63):
        raise UserError(f"seed={seed} is too large: a seed has at most 63 bits.")
    return seeds
