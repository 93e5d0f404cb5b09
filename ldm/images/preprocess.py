"""The preprocessing of images: declared once, done once and saved with the model."""

from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from ldm.common.errors import UserError, did_you_mean
from ldm.common.registry import register
from ldm.images.files.axes import channels_last
from ldm.images.files.colour import Notes
from ldm.images.files.pillow import CUT, is_transparent, pixels_of
from ldm.images.files.reading import MAX_PIXELS, ReadOptions, open_image
from ldm.images.files.sixteen_bits import read_deep
from ldm.images.files.sources import Source, bytes_of, naming, with_name
from ldm.images.files.unreadable import BadImage
from ldm.images.output import to_pil8

if TYPE_CHECKING:
    from PIL.Image import Image

Box = tuple[float, float, float, float]
TRANSPARENT = "transparency blended with"
_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, as in Pillow
_WHOLE = (1.0, 0.5, 0.5)  # zoom, and the place of the part from left to right and from top to bottom
RESIZE = ("cover", "contain", "stretch", "none")


@register
class Preprocess:
    """How images are prepared for training. It is saved with the model, which prepares its inputs in the same way.

    - `channels`: 1 for grey, 3 for RGB, 2 and 4 for the same with alpha; arrays may have any number.
    - `height`, `width`: the size in pixels.
    - `bits`: 8 or 16.
    - `resize`: `cover` fills the size and crops the centre, `contain` shows the whole image on `background`, `stretch`
      ignores the aspect, `none` refuses other sizes. Resizing is antialiased (Lanczos).
    - `background`: 0 to 255, one value or one for each channel, by default white. Transparency is blended with it
      unless alpha is a channel.
    - `low`, `high`: the values that become black and white. Without them uint8 and uint16 keep their range, and floats
      are refused.
    """

    def __init__(
        self,
        channels: int = 3,
        height: int = 32,
        width: int = 32,
        bits: int = 8,
        resize: str = "cover",
        background: Sequence[float] | None = None,
        low: float | None = None,
        high: float | None = None,
    ):
        if resize not in RESIZE:
            raise UserError(f"resize={resize} is unknown.{did_you_mean(resize, RESIZE)}")
        if bits not in (8, 16):
            raise UserError(f"bits={bits}: images have 8 or 16 bits.")
        if min(channels, height, width) < 1:
            raise UserError(f"{channels} channels of {height}x{width} make no image; each number has to be at least 1.")
        if (low is None) != (high is None) or (low is not None and high is not None and high <= low):
            raise UserError(f"low={low}, high={high}: give both, low below high.")
        if background is not None and len(background) not in (1, channels):
            raise UserError(f"background={list(background)}: give one value, or {channels}.")
        self.channels, self.height, self.width, self.bits = channels, height, width, bits
        self.resize, self.low, self.high = resize, low, high
        self.background = tuple(background or (255.0,))
        self._crop = _WHOLE

    def cropped(self, zoom: float, across: float, down: float) -> "Preprocess":
        """The same preprocessing for a part of each image. Its sides are 1/`zoom` of what is otherwise
        shown, at `across` from left (0) to right (1) and `down` from top to bottom."""
        if self.resize == "none":
            raise UserError("resize=none shows images at their own size: random crops need another way of resizing.")
        other = copy(self)
        other._crop = (zoom, across, down)
        return other

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape (C, H, W) of an image."""
        return self.channels, self.height, self.width

    @property
    def dtype(self) -> type[Any]:
        """The type of the values on disk, np.uint8 or np.uint16."""
        return np.uint8 if self.bits == 8 else np.uint16

    def open(self, source: Source, notes: Notes | None = None) -> "Image | np.ndarray":
        """The image as `open_image` reads it. Large JPEGs are decoded no larger than needed.

        With `bits` 16, colour of 16 bits isn't reduced to 8. Notes on colours are added to `notes`.
        """
        if self.bits == 16 and isinstance(source, (str, Path, bytes)):
            notes = [] if notes is None else notes
            with naming(source):
                if (deep := read_deep(bytes_of(source), notes, MAX_PIXELS)) is not None:
                    return self._fitted(deep, notes)
        draft = 0 if self.resize == "none" else int(2 * self._crop[0] * max(self.height, self.width))
        return open_image(source, ReadOptions(draft=draft, channels=self.channels), notes)

    def array(self, source: Source, notes: Notes | None = None) -> np.ndarray:
        """The image as (C, H, W) uint8 or uint16. Raises BadImage if it can't be read or doesn't fit."""
        image = self.open(source, notes)
        if notes is not None and self.channels in (1, 3) and is_transparent(image):
            notes.append(self._transparency_note())
        try:
            return self._array(image)
        except (BadImage, ValueError) as error:  # Pillow raises ValueError for modes that it can't convert
            raise BadImage(with_name(source, str(error))) from None

    def resize_map(self, array: np.ndarray) -> np.ndarray:
        """A map or mask (h, w) at the images' size and crop, (H, W); by nearest neighbour, as ids can't be mixed."""
        from PIL import Image

        if array.shape == (self.height, self.width) and self._crop == _WHOLE:
            return array
        height, width, box = self._geometry(*array.shape)
        image = Image.fromarray(array.astype(np.int32)).resize((width, height), Image.Resampling.NEAREST, box)
        return self._pad(np.asarray(image)[:, :, None].astype(array.dtype), [0])[:, :, 0]  # (H, W)

    def frame(self, height: int, width: int) -> tuple[int, int, int, int, int, int]:
        """SDXL's size condition for an image of this size (Podell et al. 2023, section 2.2).

        It is the image's height and width, top and left of the crop in pixels of the resized image, and height and
        width after preprocessing. If the whole image is kept, as with "contain" and "stretch", top and left are 0.
        Raises BadImage for a size that is refused.
        """
        left = top = 0.0
        if (height, width) != (self.height, self.width) or self._crop != _WHOLE:
            _, _, (x, y, right, bottom) = self._geometry(height, width)
            left, top = x * self.width / (right - x), y * self.height / (bottom - y)
        return height, width, round(top), round(left), self.height, self.width

    def to_tensor(self, images: np.ndarray | Tensor) -> Tensor:
        """uint8 or uint16 of any shape as float32 in [-1, 1]."""
        if isinstance(images, Tensor):
            top = 255 if images.dtype == torch.uint8 else 65535
            return images.to(torch.float32).mul_(2 / top).sub_(1)
        top = 255 if images.dtype == np.uint8 else 65535
        return torch.from_numpy(np.asarray(images, np.float32)).mul_(2 / top).sub_(1)

    def to_uint(self, images: Tensor) -> Tensor:
        """Values in [-1, 1] of any shape as uint8 or uint16, clipped and rounded."""
        values = images.detach().float().clamp(-1, 1).add(1).mul((2**self.bits - 1) / 2).round()
        return values.to(torch.int32).to(torch.uint8 if self.bits == 8 else torch.uint16)

    def to_pil(self, image: Tensor) -> "Image":
        """An image (C, H, W) in [-1, 1] as a Pillow image: grey for 1 channel (keeping 16 bits), RGB for 3.

        Of 2 channels it shows the first, of more than 3 the first three; `to_uint` gives all.
        """
        from PIL import Image

        shown = image[: 1 if image.shape[0] < 3 else 3]
        if self.bits == 16 and len(shown) == 1:
            return Image.fromarray(self.to_uint(shown[0]).cpu().numpy())
        return to_pil8(shown)

    def _fitted(self, pixels: np.ndarray, notes: Notes) -> np.ndarray:
        """Pixels (h, w, C) of 16 bits, converted to `channels` as Pillow converts those of 8.

        Transparency is blended with the background, or an opaque alpha is added, and colour becomes grey.
        """
        if self.channels in (1, 3) and pixels.shape[2] in (2, 4):
            share = pixels[..., -1:] / np.float64(2**16 - 1)
            if share.min() < 1:
                notes.append(self._transparency_note())
            ground = np.asarray(self.background if len(self.background) == pixels.shape[2] - 1 else self.background[:1])
            pixels = np.rint(pixels[..., :-1] * share + 257 * ground * (1 - share)).astype(np.uint16)
        if self.channels == 1 and pixels.shape[2] == 3:
            pixels = np.rint(pixels @ _LUMA)[..., None].astype(np.uint16)
        if self.channels == 4 and pixels.shape[2] == 3:
            pixels = np.concatenate([pixels, np.full_like(pixels[..., :1], 2**16 - 1)], 2)
        return pixels

    def _transparency_note(self) -> str:
        return f"{TRANSPARENT} {self._background_in_words()}; data.background= sets another colour"

    def _background_in_words(self) -> str:
        """The colour of the background in words."""
        values = {int(value) for value in self.background}
        if values == {255}:
            return "white"
        return "black" if values == {0} else f"the colour {self.background}"

    def _array(self, image: "Image | np.ndarray") -> np.ndarray:
        if isinstance(image, np.ndarray):
            pixels = channels_last(image, self.channels)  # (h, w, C)
        elif self.bits == 16 and image.info.get(CUT):
            raise BadImage(
                "is a colour PNG or PPM of 16 bits, which Pillow reduces to 8: give the file itself (a PPM as P6), "
                "or set bits=8"
            )
        else:
            pixels = pixels_of(image, self.channels, self.background)  # (h, w, C)
        if pixels.shape[2] == 1 and self.channels == 3:
            pixels = pixels.repeat(3, 2)
        if pixels.shape[2] != self.channels:
            raise BadImage(f"has {pixels.shape[2]} channels where {self.channels} are wanted")
        resized = self._resize(self._quantize(pixels))
        return np.ascontiguousarray(rearrange(resized, "h w c -> c h w"))

    def _quantize(self, pixels: np.ndarray) -> np.ndarray:
        top = 2**self.bits - 1
        if self.low is not None and self.high is not None:
            unit = (pixels.astype(np.float64) - self.low) / (self.high - self.low)
            if not np.isfinite(unit).all():
                raise BadImage("holds values that are not numbers (NaN or infinite): fill them, and save it again")
            return np.rint(unit.clip(0, 1) * top).astype(self.dtype)
        if pixels.dtype == bool:
            return np.where(pixels, top, 0).astype(self.dtype)
        if pixels.dtype not in (np.uint8, np.uint16):
            raise BadImage(
                f"holds {pixels.dtype}, not 8 or 16 bits: give the values of black and white as data.low= and "
                "data.high="
            )
        if pixels.dtype == self.dtype:
            return pixels
        if self.bits == 16:
            return pixels.astype(np.uint16) * np.uint16(257)
        return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)

    def _resize(self, pixels: np.ndarray) -> np.ndarray:
        if pixels.shape[:2] == (self.height, self.width) and self._crop == _WHOLE:
            return pixels
        height, width, box = self._geometry(*pixels.shape[:2])
        resized = _lanczos(pixels, height, width, box)  # (h', w', C)
        return self._pad(resized, [value * (2**self.bits - 1) / 255 for value in self.background])

    def _geometry(self, height: int, width: int) -> tuple[int, int, Box]:
        """The size to resize to, and the box (left, top, right, bottom) of the source that fills it."""
        if self.resize == "none":
            raise BadImage(f"is {height}x{width} where {self.height}x{self.width} is wanted (resize=none)")
        if self.resize == "cover":
            scale = max(self.height / height, self.width / width)
            h, w = self.height / scale, self.width / scale
            return self.height, self.width, self._part(height, width, h, w)
        whole = self._part(height, width, height, width)
        if self.resize == "stretch":
            return self.height, self.width, whole
        scale = min(self.height / height, self.width / width)
        return max(1, round(height * scale)), max(1, round(width * scale)), whole

    def _part(self, height: float, width: float, h: float, w: float) -> Box:
        """The box of h x w in an image of height x width: in its middle, or with a crop smaller by its zoom and at its
        place."""
        zoom, across, down = self._crop
        h, w = h / zoom, w / zoom
        left, top = max(0.0, across * (width - w)), max(0.0, down * (height - h))
        return (left, top, min(left + w, width), min(top + h, height))

    def _pad(self, pixels: np.ndarray, background: Sequence[float]) -> np.ndarray:
        height, width, channels = pixels.shape
        if (height, width) == (self.height, self.width):
            return pixels
        out = np.empty((self.height, self.width, channels), pixels.dtype)
        out[:] = np.asarray(background).round().astype(pixels.dtype)
        top, left = (self.height - height) // 2, (self.width - width) // 2
        out[top : top + height, left : left + width] = pixels
        return out


def _lanczos(pixels: np.ndarray, height: int, width: int, box: Box) -> np.ndarray:
    """(h, w, C) resized with antialiasing: RGB of 8 bits at once, everything else channel by channel."""
    from PIL import Image

    def resized(plane: np.ndarray) -> np.ndarray:
        """A plane (h, w), or RGB (h, w, 3), at the new size."""
        return np.asarray(Image.fromarray(plane).resize((width, height), Image.Resampling.LANCZOS, box))

    if pixels.dtype == np.uint8 and pixels.shape[2] == 3:
        return resized(pixels)
    if pixels.dtype == np.uint8:
        return np.stack([resized(np.ascontiguousarray(plane)) for plane in np.moveaxis(pixels, 2, 0)], 2)
    # Pillow resizes 16 bits as floats, which overshoot at edges
    planes = [resized(np.ascontiguousarray(plane, np.float32)) for plane in np.moveaxis(pixels, 2, 0)]
    return np.rint(np.stack(planes, 2)).clip(0, 2**16 - 1).astype(pixels.dtype)
