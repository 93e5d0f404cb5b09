"""Colours as they are meant to look: values are converted to sRGB by the embedded colour profile.

Models, caches and screens all take numbers for sRGB, so the values of a phone's Display P3 or a camera's Adobe RGB
would lose their saturation. What can't be converted is read as sRGB with a note, and never refused.
"""

import io
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

Notes = list[str]
CONVERTED = "colour profile converted to sRGB"
SRGB_GAMMA = 0.45455
# Chromaticities of white, red, green and blue, in the order of PNG's cHRM.
SRGB_PRIMARIES = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)
_SAME = 2  # levels of 8 bits: a profile that changes no colour by more is sRGB
_SPACES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # ICC's signatures and Pillow's modes
_EXIF, _INTEROP, _INDEX = 0x8769, 0xA005, 1  # Exif's tags; the index R03 stands for Adobe RGB (DCF 2.0), R98 for sRGB
CICP = "ldm_cicp"  # the key of an image's info for the result of `cicp`
_PNG, _CICP_SRGB = b"\x89PNG\r\n\x1a\n", (1, 13)


class Conversion(NamedTuple):
    """The conversion from a profile to sRGB; `transform` is None if the values are the same, or because of `fault`."""

    name: str
    transform: Any = None
    fault: str = ""


def in_srgb(image: "Image", notes: Notes) -> "Image":
    """The image in sRGB and without its profile. What was converted, and what couldn't be, is added to `notes`."""
    profile = image.info.pop("icc_profile", None)
    if not isinstance(profile, bytes):  # a PNG may have a text of that name
        notes += unembedded(image)
        return image
    if image.mode[0] in "IF":
        notes += unconverted(profile, "L")
        return image
    simple = _simple_mode(image)
    base = simple.mode.removesuffix("A")
    found = conversion(profile, base)
    if found.fault:
        notes.append(found.fault)
    if found.transform is None:
        return image
    notes.append(f"{CONVERTED}: {found.name}")
    return _applied(found.transform, simple, base)


def unconverted(profile: bytes | None, mode: str) -> Notes:
    """Notes on the profile of an image of more than 8 bits, which Pillow's colour management can't convert."""
    found = conversion(profile, mode) if profile else None
    if found is None or (found.transform is None and not found.fault):
        return []
    return [found.fault or f"colour profile for more than 8 bits isn't converted; read as sRGB: {found.name}"]


def unembedded(image: "Image") -> Notes:
    """Notes on a colour space other than sRGB that an image declares without embedding a profile."""
    if image.info.get(CICP, _CICP_SRGB) != _CICP_SRGB:
        return ["PNG's cICP declares another colour space; read as sRGB"]
    if not _is_srgb(image.info):
        return ["PNG's gAMA or cHRM declares another colour space; read as sRGB"]
    if _exif_says_adobe(image):
        return ["Exif declares Adobe RGB without a profile; read as sRGB"]
    return []


def cicp(content: bytes) -> tuple[int, int] | None:
    """Primaries and transfer function (ITU-T H.273) of a PNG's cICP chunk, which Pillow doesn't read."""
    at = len(_PNG)
    while content.startswith(_PNG) and at + 12 <= len(content):
        length, kind = int.from_bytes(content[at : at + 4], "big"), content[at + 4 : at + 8]
        if kind in (b"cICP", b"IDAT"):
            return (content[at + 8], content[at + 9]) if kind == b"cICP" else None
        at += 12 + length
    return None


@lru_cache(maxsize=32)
def conversion(profile: bytes, mode: str) -> Conversion:
    """The conversion of values of `mode` (L, RGB or CMYK) to sRGB by an ICC profile."""
    from PIL import ImageCms

    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = source.profile.xcolor_space.strip()
        if _SPACES.get(space) != mode:
            return Conversion("", fault=f"colour profile is for {space}, not for the image's colours; read as sRGB")
        name = ImageCms.getProfileDescription(source).strip() or "without a name"
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
        return Conversion(name, None if _changes_nothing(transform, mode) else transform)
    except (ImageCms.PyCMSError, ImportError, OSError, ValueError):
        return Conversion("", fault="colour profile is broken; read as sRGB")


def _simple_mode(image: "Image") -> "Image":
    """The image in mode L, LA, RGB, RGBA or CMYK."""
    if image.mode == "CMYK":
        return image
    grey = image.mode in ("1", "L", "LA", "La")
    alpha = "A" if image.has_transparency_data else ""
    return image.convert(("L" if grey else "RGB") + alpha)


def _applied(transform: Any, image: "Image", base: str) -> "Image":
    from PIL import ImageCms

    colours = image if image.mode == base else image.convert(base)
    made: Any = ImageCms.applyTransform(colours, transform)
    if base == "L":
        made = made.convert("L")
    if image.mode.endswith("A"):
        made.putalpha(image.getchannel("A"))
    made.info = {key: value for key, value in image.info.items() if key != "transparency"}
    return made


def _changes_nothing(transform: Any, mode: str) -> bool:
    """Whether colours stay as they are, tested with nine levels of each channel."""
    from PIL import Image, ImageCms

    if mode == "CMYK":
        return False
    levels = np.linspace(0, 255, 9).round().astype(np.uint8)
    tried = levels[None] if mode == "L" else np.stack(np.meshgrid(levels, levels, levels), -1).reshape(27, 27, 3)
    made = np.asarray(ImageCms.applyTransform(Image.fromarray(tried), transform)).astype(int)
    return bool(abs(made - (tried if mode == "RGB" else tried[:, :, None])).max() <= _SAME)


def _exif_says_adobe(image: "Image") -> bool:
    """Whether a camera's Exif declares Adobe RGB, and not sRGB."""
    try:
        exif = image.getexif()
        return _EXIF in exif and _INTEROP in exif.get_ifd(_EXIF) and exif.get_ifd(_INTEROP).get(_INDEX) == "R03"
    except Exception:  # damaged Exif raises anything, and the image is fine without it
        return False


def _is_srgb(info: dict[Any, Any]) -> bool:
    """Whether a PNG's sRGB, gAMA and cHRM chunks declare sRGB, or nothing. Texts may have the same names."""
    if isinstance(info.get("srgb"), int):
        return True
    primaries, gamma = info.get("chromaticity"), info.get("gamma")
    if isinstance(gamma, float) and abs(gamma - SRGB_GAMMA) >= 5e-3:
        return False
    pairs = zip(primaries, SRGB_PRIMARIES, strict=True) if isinstance(primaries, tuple) else ()
    return all(abs(a - b) < 2e-3 for a, b in pairs)
