"""What a trainer's settings declare about a whole single file: averaged weights, how conditions enter, image size."""

import logging
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ldm.common.errors import UserError
from ldm.interop.files.declared import each_setting
from ldm.interop.files.values import flag, is_off, number, whole
from ldm.interop.settings.modelspec import resolution
from ldm.networks import UNet

log = logging.getLogger("ldm")
_CONCATENATED = ("concat", "hybrid")
_UNUSED = 64  # the latents' side in every stock config, even in those of 768-pixel models


def warn_of_averages(declared: Mapping[str, Any], has_averages: bool, taken: bool, where: str) -> None:
    """Warns which weights were loaded if the settings declare that averages were kept."""
    uses = any(name == "use_ema" and flag(value, f"{where}: {key}") for key, name, value in each_setting(declared))
    if uses and not taken:
        rest = (
            "the averaged ones are in the file too: ema=True uses them"
            if has_averages
            else "the averaged ones aren't in the file"
        )
        log.warning("%s declares use_ema: the weights without averaging are used; %s", where, rest)


def check_conditions(declared: Mapping[str, Any], network: UNet, where: str) -> None:
    """Raises UserError if settings declare conditions that are concatenated to latents, and the U-Net reads none."""
    for key, name, value in each_setting(declared):
        kinds = str(value).strip().lower().split("-")
        if name == "conditioning_key" and set(kinds) & set(_CONCATENATED) and not network.concat_channels:
            raise UserError(
                f"{where} sets {key}={str(value)[:40]}, but its U-Net reads only the {network.in_channels} channels of "
                "latents: settings and weights belong to two models, so use the right ones."
            )


def size(declared: Mapping[str, Any], factor: int, where: str) -> tuple[int, int] | None:
    """The height and width of the images: by `modelspec.resolution`, kohya's `ss_resolution`, or a trainer's
    `image_size`, which is the size of the latents.

    The first is used, and a warning names one that differs; None without any.
    """
    found = [(key, pair) for key, pair in _sizes(declared, factor, where) if pair]
    for key, pair in found[1:]:
        if pair != found[0][1]:
            shown = [f"{width}x{height}" for height, width in (pair, found[0][1])]
            log.warning("%s: %s declares %s, but %s %s, which is used", where, key, shown[0], found[0][0], shown[1])
    return found[0][1] if found else None


def sizes_of(declared: Mapping[str, Any], where: str) -> list[str]:
    """The declared sizes with their keys, for a part that doesn't use one."""
    return [f"{key}={height}x{width}" for key, pair in _sizes(declared, 1, where) if pair for height, width in [pair]]


def _sizes(declared: Mapping[str, Any], factor: int, where: str) -> Iterator[tuple[str, tuple[int, int] | None]]:
    yield "modelspec.resolution", resolution(declared, where)
    for key, name, value in each_setting(declared):
        if name == "ss_resolution" and not is_off(value):
            yield key, _kohya(value, f"{where}: {key}")
    for key, name, value in each_setting(declared):
        if name == "image_size" and "first_stage" not in key:
            yield key, _of_latents(value, factor, f"{where}: {key}")


def _kohya(value: Any, what: str) -> tuple[int, int]:
    """The size in "(width, height)", or in one number for both."""
    found = re.fullmatch(r"[(\[]?\s*(\d{1,5})\s*(?:[,x]\s*(\d{1,5})?\s*)?[)\]]?", str(value).strip())
    width, height = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not min(width, height):
        raise UserError(f"{what} is {str(value)[:40]!r}, where (width, height) belongs: give size.")
    return height, width


def _of_latents(value: Any, factor: int, what: str) -> tuple[int, int] | None:
    """The size of images from the side of the latents, or from their (height, width); None for the side that all stock
    configs have.
    """
    sides = list(value) if isinstance(value, (list, tuple)) else [value, value]
    if len(sides) != 2:
        raise UserError(f"{what} is {str(value)[:40]!r}, where one side of the latents or two belong: give size.")
    height, width = (whole(number(side, what), what, 1, 8192) for side in sides)
    return None if height == width == _UNUSED else (height * factor, width * factor)
