"""The settings of a request: all that is needed to generate its images again."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from ldm.common import annotations
from ldm.common.errors import UserError, did_you_mean
from ldm.diffusion import SAMPLERS

MAX_PROMPT = 10_000  # characters; no text encoder reads nearly as many
MAX_N = 64  # images of each class
MAX_IMAGES = 1024  # in one request, over all of its classes
SLOTS = 2  # for LoRAs, and as many for ControlNets
MAX_SEED = 2**53  # a browser's numbers are exact below
MAX_STEPS = 1000
MAX_FEATHER = 256
MAX_AREA = 16  # times the pixels of the images that a model was trained on: memory grows with it
MAX_PIXELS = 64_000_000  # of an uploaded image
SPACINGS = ("uniform", "karras", "exponential", "beta", "kl_optimal", "leading", "linspace", "table", "lcm")
# Options that are passed on to the sampler; None stands for the model's own.
OPTIONS = ("sampler", "steps", "guidance", "spacing", "shift", "eta", "rescale", "interval")


@dataclass(frozen=True)
class Settings:
    """One request, as plain data: `image`, `mask`, `map` and the inputs of `controlnets` are names in the page's
    inputs/ (see `PageStore`). `loras` are (name, scale), `controlnets` (name, weight, start, end, input)."""

    run: str = ""
    checkpoint: str | None = None
    prompt: str = ""
    negative: str = ""
    labels: tuple[str, ...] = ()
    map: str | None = None
    image: str | None = None
    mask: str | None = None
    strength: float | None = None
    feather: int = 0
    seed: int = 0
    n: int = 4
    width: int | None = None
    height: int | None = None
    sampler: str | None = None
    steps: int | None = None
    guidance: float | None = None
    spacing: str | None = None
    shift: float | None = None
    eta: float | None = None
    rescale: float | None = None
    interval: tuple[float, float] | None = None
    loras: tuple[tuple[str, float], ...] = ()
    controlnets: tuple[tuple[str, float, float, float, str], ...] = ()
    enlarge: str | None = None  # the run of a model for super-resolution, which enlarges the images
    control_ready: bool = False  # the ControlNets' inputs are control images, not images to compute them from

    def options(self) -> dict[str, Any]:
        """The sampler's options that are set."""
        return {key: value for key in OPTIONS if (value := getattr(self, key)) is not None}

    def as_dict(self) -> dict[str, Any]:
        """Plain data: the seed, and what differs from the defaults."""
        values = asdict(self)
        return {
            field.name: values[field.name]
            for field in fields(self)
            if field.name == "seed" or values[field.name] != field.default
        }


def check_settings(settings: Settings) -> Settings:
    """The settings themselves. Raises UserError, which names the first of them that is invalid."""
    for key in ("prompt", "negative"):
        check_length(key, len(getattr(settings, key)))
    if not 1 <= settings.n <= MAX_N:
        raise UserError(f"n={settings.n}: take between 1 and {MAX_N} images at a time.")
    if settings.n * len(settings.labels) > MAX_IMAGES:
        raise UserError(
            f"n={settings.n} for {len(settings.labels)} classes: a request generates up to {MAX_IMAGES} images."
        )
    if settings.steps is not None and not 1 <= settings.steps <= MAX_STEPS:
        raise UserError(f"steps={settings.steps}: take between 1 and {MAX_STEPS}.")
    if settings.sampler is not None and settings.sampler not in SAMPLERS:
        raise UserError(f"there is no sampler '{settings.sampler}'.{did_you_mean(settings.sampler, SAMPLERS)}")
    for key, number in _numbers(settings):
        if not abs(number) <= annotations.MAX_FLOAT32:
            raise UserError(
                f"{key}={number} has to be a number that float32 can hold, up to {annotations.MAX_FLOAT32:g}."
            )
    annotations.check_guidance(settings.guidance or 0)
    if not 0 <= settings.seed < 2**63 - MAX_N:
        raise UserError(f"seed={settings.seed} has to be a whole number between 0 and 2^63.")
    if (settings.width is None) != (settings.height is None):
        raise UserError("give both width and height, or neither.")
    if settings.width is not None and min(settings.width, settings.height or 0) < 1:
        raise UserError(f"{settings.width}x{settings.height} pixels make no image: give at least 1 for each side.")
    if not 0 <= settings.feather <= MAX_FEATHER:
        raise UserError(f"feather={settings.feather}: take between 0 and {MAX_FEATHER} pixels.")
    if settings.mask and not settings.image:
        raise UserError("the mask needs an initial image: upload one first.")
    return settings


def check_length(what: str, length: int) -> None:
    """Raises UserError for a prompt of too many characters."""
    if length > MAX_PROMPT:
        raise UserError(f"{what} has {length:,} characters: write up to {MAX_PROMPT:,}.")


def _numbers(settings: Settings) -> Iterator[tuple[str, float]]:
    """The numbers of a request that have no range of their own, each with its name."""
    for key in ("guidance", "shift", "eta", "rescale", "strength"):
        yield key, getattr(settings, key) or 0
    yield from (("interval", sigma) for sigma in settings.interval or ())
    yield from ((f"scale of {name}", scale) for name, scale in settings.loras)
    for name, *numbers, _ in settings.controlnets:
        yield from ((f"number of {name}", number) for number in numbers)


def check_image_size(settings: Settings, width: int, height: int) -> None:
    """Raises UserError for images much larger than a model's own `width` x `height` pixels: one request would
    take everybody's memory."""
    area = (settings.width or width) * (settings.height or height)
    if area > MAX_AREA * width * height:
        raise UserError(
            f"{settings.width}x{settings.height} is too large for a model of {width}x{height}: give a size with "
            f"at most {MAX_AREA} times as many pixels."
        )


def from_dict(given: Mapping[str, Any]) -> Settings:
    """Settings from plain data, without unknown keys. Raises UserError for values of a wrong type."""
    declared = annotations.annotations_of(Settings)
    values = {key: _tuples(value) for key, value in given.items() if key in declared and value is not None}
    for key, value in values.items():
        annotations.check_value(value, declared[key], key)
    return Settings(**values)


def parse_interval(text: str) -> tuple[float, float] | None:
    """`"0.2, 5"` as (0.2, 5.0); None for an empty text. Raises UserError for anything else."""
    if not text.strip():
        return None
    try:
        low, high = (float(part) for part in text.replace(";", ",").split(","))
    except ValueError:
        raise UserError(f"the guidance interval '{text}' has to be two numbers of sigma, as in 0.2, 5.") from None
    return low, high


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value
