"""What pictures are asked for with: everything that is needed to draw them again."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from ldm.common import annotations
from ldm.common.errors import UserError, did_you_mean
from ldm.diffusion import SAMPLERS

MAX_PICTURES = 64
MAX_IMAGES = 1024  # of one request, all its classes together
SLOTS = 2  # of LoRAs, and of ControlNets
MAX_SEED = 2**53  # a browser's numbers are exact below
MAX_STEPS = 1000
MAX_FEATHER = 256
MAX_AREA = 16  # times the pixels of the pictures that a model was trained on: what memory it takes grows with it
PIXELS = 64_000_000  # of an image that is put in
SPACINGS = ("uniform", "karras", "exponential", "beta", "kl_optimal", "leading", "linspace", "table", "lcm")
# Options that go to the sampler as they are; None: as the model was trained to be sampled.
OPTIONS = ("sampler", "steps", "guidance", "spacing", "shift", "eta", "rescale", "interval")


@dataclass(frozen=True)
class Settings:
    """One request. Pictures that it starts from are names in the page's inputs/ (see `store`), so that it is plain
    data; `loras` are (name, scale), `controlnets` (name, weight, start, end, input)."""

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
    control_ready: bool = False  # the ControlNets' inputs are control images, not pictures to make them from

    def options(self) -> dict[str, Any]:
        """What is said of the sampler."""
        return {key: value for key in OPTIONS if (value := getattr(self, key)) is not None}

    def as_dict(self) -> dict[str, Any]:
        """Plain data, without what is as by default."""
        return {f.name: v for f in fields(self) if (v := asdict(self)[f.name]) != f.default or f.name in ("seed",)}


def checked(settings: Settings) -> Settings:
    """The settings, or a UserError that names the first of them which can't be."""
    if not 1 <= settings.n <= MAX_PICTURES:
        raise UserError(f"n={settings.n}: draw between 1 and {MAX_PICTURES} pictures at a time.")
    if settings.n * len(settings.labels) > MAX_IMAGES:
        raise UserError(
            f"n={settings.n} for {len(settings.labels)} classes: a request makes up to {MAX_IMAGES} images."
        )
    if settings.steps is not None and not 1 <= settings.steps <= MAX_STEPS:
        raise UserError(f"steps={settings.steps}: take between 1 and {MAX_STEPS}.")
    if settings.sampler is not None and settings.sampler not in SAMPLERS:
        raise UserError(f"there is no sampler '{settings.sampler}'.{did_you_mean(settings.sampler, SAMPLERS)}")
    for key, number in _numbers(settings):
        if not abs(number) <= annotations.MAX_FLOAT32:
            raise UserError(f"{key}={number} has to be a number that float32 holds, up to {annotations.MAX_FLOAT32:g}.")
    annotations.check_guidance(settings.guidance or 0)
    if not 0 <= settings.seed < 2**63 - MAX_PICTURES:
        raise UserError(f"seed={settings.seed} has to be a whole number between 0 and 2^63.")
    if (settings.width is None) != (settings.height is None):
        raise UserError("give both width and height, or neither.")
    if settings.width is not None and min(settings.width, settings.height or 0) < 1:
        raise UserError(f"{settings.width}x{settings.height} pixels make no image.")
    if not 0 <= settings.feather <= MAX_FEATHER:
        raise UserError(f"feather={settings.feather}: take between 0 and {MAX_FEATHER} pixels.")
    if settings.mask and not settings.image:
        raise UserError("the mask needs a picture: put one in before you draw on it.")
    return settings


def _numbers(settings: Settings) -> Iterator[tuple[str, float]]:
    """The numbers of a request that may be large, each with its name."""
    for key in ("guidance", "shift", "eta", "rescale", "strength"):
        yield key, getattr(settings, key) or 0
    yield from (("interval", one) for one in settings.interval or ())
    yield from ((f"scale of {name}", scale) for name, scale in settings.loras)
    yield from ((f"number of {name}", one) for name, *numbers, _ in settings.controlnets for one in numbers)


def check_size(settings: Settings, width: int, height: int) -> None:
    """Raises UserError for pictures much larger than those of a model of `width` x `height`: one request for them would
    take the memory of all."""
    asked = (settings.width or width) * (settings.height or height)
    if asked > MAX_AREA * width * height:
        raise UserError(
            f"{settings.width}x{settings.height} is too large for a model of {width}x{height}: the page draws up to "
            f"{MAX_AREA} times as many pixels."
        )


def from_dict(given: Mapping[str, Any]) -> Settings:
    """Settings from plain data; keys that aren't ours are left out. Raises UserError for values of another kind."""
    declared = annotations.annotations_of(Settings)
    said = {key: _tuples(value) for key, value in given.items() if key in declared and value is not None}
    for key, value in said.items():
        annotations.check_value(value, declared[key], key)
    return Settings(**said)


def parse_interval(text: str) -> tuple[float, float] | None:
    """`"0.2, 5"` as (0.2, 5.0); nothing for an empty text."""
    if not text.strip():
        return None
    try:
        low, high = (float(part) for part in text.replace(";", ",").split(","))
    except ValueError:
        raise UserError(f"the guidance interval '{text}' has to be two numbers of sigma, as in 0.2, 5.") from None
    return low, high


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value
