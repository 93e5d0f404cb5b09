"""X/Y grids: one image for each pair of values of two settings."""

import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ldm.common.errors import UserError, did_you_mean
from ldm.ui.generating.form import FINISHED
from ldm.ui.generating.settings import Settings, check_length

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_CELLS = 100
_RANGE = re.compile(r"(-?\d+)-(-?\d+)(?::(\d+))?")


@dataclass(frozen=True)
class Axis:
    """A setting by its name on the page, and its values; NOT_VARIED has the single value None."""

    name: str
    values: tuple[Any, ...]

    def labels(self) -> list[str]:
        """What the sheet says beside the values, such as `steps 20`."""
        return [
            f"{self.name} {value:g}" if isinstance(value, float) else f"{self.name} {value}" for value in self.values
        ]


def parse_axis(name: str, text: str) -> Axis:
    """An axis from typed text: values separated by commas, whole numbers also as `1-5` or `10-50:10`.

    Raises UserError for an unknown name, and for values of a wrong type.
    """
    if name == NOT_VARIED:
        return Axis(NOT_VARIED, (None,))
    if not isinstance(name, str) or not isinstance(text, str):
        raise UserError("an axis is a name and its values, both as text.")
    if name not in KINDS:
        raise UserError(f"there is no axis '{name}'.{did_you_mean(name, KINDS)}")
    try:
        values = _values(name, text)
    except ValueError:
        raise UserError(f"{name}: '{text}' has to be numbers separated by commas, as in 1, 2, 5.") from None
    if not values:
        raise UserError(f"{name}: give values separated by commas.")
    return Axis(name, values)


def _values(name: str, text: str) -> tuple[Any, ...]:
    """The distinct values in a text. Raises UserError as soon as there are more than a grid holds, since a short
    text of ranges can expand to very many."""
    kind = KINDS[name]
    found: dict[Any, None] = {}
    for piece in filter(None, map(str.strip, re.split(r"[,\n]", text))):
        for value in _expand_range(piece) if kind is int else (piece,):
            found[kind(value)] = None
            if len(found) > MAX_CELLS:
                raise UserError(f"{name}: a grid has up to {MAX_CELLS} images: take fewer values.")
    return tuple(found)


def cells(settings: Settings, x: Axis, y: Axis) -> list[Settings]:
    """A request for one image for each cell, row by row. Raises UserError for a grid that is invalid or too large."""
    if x.name == y.name != NOT_VARIED:
        raise UserError(f"both axes vary {x.name}: choose another setting for one of them.")
    if len(x.values) * len(y.values) > MAX_CELLS:
        raise UserError(f"{len(x.values)} x {len(y.values)} images are more than {MAX_CELLS}: take fewer values.")
    if len(settings.labels) > 1:
        raise UserError("a grid has one image for each pair of values: choose one class.")
    if "strength" in (x.name, y.name) and settings.image is None:
        raise UserError("strength changes nothing without an initial image: choose another axis, or upload an image.")
    one = replace(settings, n=1)
    return [_with_value(_with_value(one, y, row), x, column) for row, column in itertools.product(y.values, x.values)]


def sheet(images: list["Image"], x: Axis, y: Axis, least: int = 96) -> "Image":
    """The images as a table with the values at its edges; images narrower than `least` pixels are enlarged, each pixel
    to a square."""
    from PIL import Image, ImageDraw, ImageFont

    width, height = images[0].size
    times = max(1, -(-least // width))
    width, height, gap, font = width * times, height * times, 4, ImageFont.load_default(13)
    left = 0 if y.name == NOT_VARIED else 8 + max(int(font.getlength(label)) for label in y.labels())
    top = 0 if x.name == NOT_VARIED else 22
    columns = len(x.values)
    size = (left + columns * (width + gap), top + len(y.values) * (height + gap))
    out = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(out)
    for i, image in enumerate(images):
        place = (left + i % columns * (width + gap), top + i // columns * (height + gap))
        out.paste(image.convert("RGB").resize((width, height), Image.Resampling.NEAREST), place)
    if top:
        for i, label in enumerate(x.labels()):
            draw.text((left + i * (width + gap) + 2, 3), _shorten(label, width, font.getlength), "black", font)
    if left:
        for i, label in enumerate(y.labels()):
            draw.text((2, top + i * (height + gap) + height // 2 - 8), label, "black", font)
    return out


def _with_value(settings: Settings, axis: Axis, value: Any) -> Settings:
    if axis.name == NOT_VARIED:
        return settings
    if axis.name == "prompt part":
        return replace(settings, prompt=_with_part(settings.prompt, str(axis.values[0]), value))
    changed: dict[str, Any] = {axis.name: None if value == FINISHED else value}
    return replace(settings, **changed)


def _with_part(prompt: str, part: str, value: str) -> str:
    """A prompt with `value` in place of `part`. Raises UserError where it has none, and before it grows too long."""
    count = prompt.count(part)
    if not count:
        raise UserError(
            f"the prompt has no '{part}', the axis's first value, which the others replace: write it into the prompt."
        )
    check_length("prompt", len(prompt) + count * (len(value) - len(part)))
    return prompt.replace(part, value)


def _expand_range(piece: str) -> Iterator[str]:
    match = _RANGE.fullmatch(piece)
    if not match:
        yield piece
        return
    first, last, step = int(match[1]), int(match[2]), int(match[3] or 1)
    if step < 1 or not 0 <= (last - first) // step < MAX_CELLS:
        raise UserError(f"'{piece}' has to be FIRST-LAST or FIRST-LAST:STEP with at most {MAX_CELLS} values.")
    yield from map(str, range(first, last + 1, step))


def _shorten(text: str, width: int, length: Callable[[str], float]) -> str:
    while len(text) > 1 and length(text) > width - 4:
        text = text[:-1]
    return text


NOT_VARIED = "nothing"
KINDS: dict[str, Callable[[str], Any]] = {
    "seed": int,
    "steps": int,
    "guidance": float,
    "sampler": str,
    "strength": float,
    "prompt part": str,
    "run": str,
    "checkpoint": str,
}
