"""The preprocessing that is declared once, done once and saved with the model."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ldm.common.errors import UserError, did_you_mean
from ldm.common.registry import register
from ldm.images.axes import channels_last
from ldm.images.colour import Notes
from ldm.images.deep import read_deep
from ldm.images.output import to_pil8
from ldm.images.reading import MAX_PIXELS, bytes_of, is_transparent, named, naming, open_image, pixels_of
from ldm.images.unknown import BadImage

if TYPE_CHECKING:
    from PIL.Image import Image

Box = tuple[float, float, float, float]
TRANSPARENT = "transparency laid on"
_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, as Pillow has it
RESIZE = ("cover", "contain", "stretch", "none")


@register
class Preprocess:
    """What is done to a picture before it is a training sample; saved with the model, so inputs get the same.

    `resize`: "cover" fills height x width and crops the centre, "contain" shows all on `background`, "stretch" ignores
    the aspect, "none" refuses other sizes. Resizing is antialiased (Lanczos). Transparency is laid on `background`
    (0..255, one value or one per channel; white by default) unless alpha is a channel (`channels` 2 or 4).
    Values from `low` to `high` become the full range; without them uint8 and uint16 keep theirs, floats are refused.
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
            raise UserError(f"resize={resize} isn't a way of resizing.{did_you_mean(resize, RESIZE)}")
        if bits not in (8, 16):
            raise UserError(f"bits={bits}: images are kept with 8 or 16 bits.")
        if min(channels, height, width) < 1:
            raise UserError(f"{channels} channels of {height}x{width} make no image; each is at least 1.")
        if (low is None) != (high is None) or (low is not None and high is not None and high <= low):
            raise UserError(f"low={low}, high={high}: give both, low below high.")
        if background is not None and len(background) not in (1, channels):
            raise UserError(f"background={list(background)}: give one value, or {channels}.")
        self.channels, self.height, self.width, self.bits = channels, height, width, bits
        self.resize, self.low, self.high = resize, low, high
        self.background = tuple(background or (255.0,))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.channels, self.height, self.width

    @property
    def dtype(self) -> type[Any]:
        """numpy's uint8 or uint16."""
        return np.uint8 if self.bits == 8 else np.uint16

    def open(
        self, source: "str | Path | bytes | Image | np.ndarray", notes: Notes | None = None
    ) -> "Image | np.ndarray":
        """The picture as it is meant, for `array`: see `open_image`. Big JPEGs are decoded no larger than needed; of
        16 bits in colour all are kept where 16 are."""
        if self.bits == 16 and isinstance(source, (str, Path, bytes)):
            said: Notes = [] if notes is None else notes
            with naming(source):
                if (deep := read_deep(bytes_of(source), said, MAX_PIXELS)) is not None:
                    return self._fitted(deep, said)
        return open_image(
            source, 0 if self.resize == "none" else 2 * max(self.height, self.width), notes, self.channels
        )

    def array(self, source: "str | Path | bytes | Image | np.ndarray", notes: Notes | None = None) -> np.ndarray:
        """The picture as (C, H, W) uint8 or uint16. Raises BadImage for what can't be read or doesn't fit."""
        picture = self.open(source, notes)
        if notes is not None and self.channels in (1, 3) and is_transparent(picture):
            notes.append(self._laid())
        try:
            return self._array(picture)
        except (BadImage, ValueError) as error:  # Pillow raises ValueError for modes that it can't convert
            raise BadImage(named(source, str(error))) from None

    def resize_map(self, array: np.ndarray) -> np.ndarray:
        """A map or mask (h, w) at the images' size and crop, by nearest neighbour: ids are never mixed. (H, W)."""
        from PIL import Image

        if array.shape == (self.height, self.width):
            return array
        height, width, box = self._geometry(*array.shape)
        picture = Image.fromarray(array.astype(np.int32)).resize((width, height), Image.Resampling.NEAREST, box)
        return self._pad(np.asarray(picture)[:, :, None].astype(array.dtype), [0])[:, :, 0]  # (H, W)

    def frame(self, height: int, width: int) -> tuple[int, int, int, int, int, int]:
        """What is said of a picture of so many rows and columns: its height and width, top and left of what is kept,
        counted in pixels once it is resized, and the size that it has then (Podell et al. 2023, SDXL, 2.2).

        Of one that is shown whole, as "contain" and "stretch" do, the corner is 0, 0. Raises BadImage for a size that
        is refused.
        """
        left = top = 0.0
        if (height, width) != (self.height, self.width):
            _, _, (x, y, right, bottom) = self._geometry(height, width)
            left, top = x * self.width / (right - x), y * self.height / (bottom - y)
        return height, width, round(top), round(left), self.height, self.width

    def to_tensor(self, images: np.ndarray | Tensor) -> Tensor:
        """uint8 or uint16 of any shape to float32 in [-1, 1]."""
        if isinstance(images, Tensor):
            top = 255 if images.dtype == torch.uint8 else 65535
            return images.to(torch.float32).mul_(2 / top).sub_(1)
        top = 255 if images.dtype == np.uint8 else 65535
        return torch.from_numpy(np.asarray(images, np.float32)).mul_(2 / top).sub_(1)

    def to_uint(self, images: Tensor) -> Tensor:
        """[-1, 1] of any shape to uint8 or uint16, clipped and rounded."""
        values = images.detach().float().clamp(-1, 1).add(1).mul((2**self.bits - 1) / 2).round()
        return values.to(torch.int32).to(torch.uint8 if self.bits == 8 else torch.uint16)

    def to_pil(self, image: Tensor) -> "Image":
        """(C, H, W) in [-1, 1] as a picture: grey for 1 channel (16 bits are kept), RGB for 3.

        Of 2 channels the first is shown, of more than 3 the first three; take `to_uint` for all of them.
        """
        from PIL import Image

        shown = image[: 1 if image.shape[0] < 3 else 3]
        if self.bits == 16 and len(shown) == 1:
            return Image.fromarray(self.to_uint(shown[0]).cpu().numpy())
        return to_pil8(shown)

    def _fitted(self, pixels: np.ndarray, notes: Notes) -> np.ndarray:
        """(h, w, C) of 16 bits with the wanted channels, as Pillow makes them of 8: alpha is laid on the background or
        added, colour becomes grey."""
        if self.channels in (1, 3) and pixels.shape[2] in (2, 4):
            share = pixels[..., -1:] / np.float64(2**16 - 1)
            notes += [self._laid()] if share.min() < 1 else []
            ground = np.asarray(self.background if len(self.background) == pixels.shape[2] - 1 else self.background[:1])
            pixels = np.rint(pixels[..., :-1] * share + 257 * ground * (1 - share)).astype(np.uint16)
        if self.channels == 1 and pixels.shape[2] == 3:
            pixels = np.rint(pixels @ _LUMA)[..., None].astype(np.uint16)
        if self.channels == 4 and pixels.shape[2] == 3:
            pixels = np.concatenate([pixels, np.full_like(pixels[..., :1], 2**16 - 1)], 2)
        return pixels

    def _laid(self) -> str:
        return f"{TRANSPARENT} {self._ground()}; data.background= sets another colour"

    def _ground(self) -> str:
        """The colour of the background in words."""
        values = {int(value) for value in self.background}
        return "white" if values == {255} else "black" if values == {0} else f"the colour {self.background}"

    def _array(self, picture: "Image | np.ndarray") -> np.ndarray:
        if isinstance(picture, np.ndarray):
            pixels = channels_last(picture, self.channels)  # (h, w, C)
        elif self.bits == 16 and picture.info.get("ldm_cut_to_8_bits"):
            raise BadImage(
                "is a colour PNG or PPM of 16 bits, of which Pillow reads 8: give the file itself (a PPM as P6), or "
                "set bits=8"
            )
        else:
            pixels = pixels_of(picture, self.channels, self.background)  # (h, w, C)
        if pixels.shape[2] == 1 and self.channels == 3:
            pixels = pixels.repeat(3, 2)
        if pixels.shape[2] != self.channels:
            raise BadImage(f"has {pixels.shape[2]} channels where {self.channels} are wanted")
        return np.ascontiguousarray(self._resize(self._quantize(pixels)).transpose(2, 0, 1))  # (C, H, W)

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
                f"holds {pixels.dtype}, not 8 or 16 bits: say what is black and white by data.low= and data.high="
            )
        if pixels.dtype == self.dtype:
            return pixels
        if self.bits == 16:
            return pixels.astype(np.uint16) * np.uint16(257)
        return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)

    def _resize(self, pixels: np.ndarray) -> np.ndarray:
        if pixels.shape[:2] == (self.height, self.width):
            return pixels
        height, width, box = self._geometry(*pixels.shape[:2])
        resized = _lanczos(pixels, height, width, box)  # (h', w', C)
        return self._pad(resized, [value * (2**self.bits - 1) / 255 for value in self.background])

    def _geometry(self, height: int, width: int) -> tuple[int, int, Box]:
        """The size to resize to, and the box (left, top, right, bottom) of the source that goes there."""
        if self.resize == "none":
            raise BadImage(f"is {height}x{width} where {self.height}x{self.width} is wanted (resize=none)")
        if self.resize == "cover":
            scale = max(self.height / height, self.width / width)
            h, w = self.height / scale, self.width / scale
            left, top = max(0.0, (width - w) / 2), max(0.0, (height - h) / 2)
            return self.height, self.width, (left, top, min(left + w, width), min(top + h, height))
        whole = (0.0, 0.0, float(width), float(height))
        if self.resize == "stretch":
            return self.height, self.width, whole
        scale = min(self.height / height, self.width / width)
        return max(1, round(height * scale)), max(1, round(width * scale)), whole

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
    """(h, w, C) resized with antialiasing: RGB by Pillow's fast path, the rest channel by channel."""
    from PIL import Image

    def one(plane: np.ndarray) -> np.ndarray:
        return np.asarray(Image.fromarray(plane).resize((width, height), Image.Resampling.LANCZOS, box))

    if pixels.dtype == np.uint8 and pixels.shape[2] == 3:
        return one(pixels)
    if pixels.dtype == np.uint8:
        return np.stack([one(np.ascontiguousarray(plane)) for plane in np.moveaxis(pixels, 2, 0)], 2)
    # Pillow resizes 16 bits as floats, which overshoot at edges
    planes = [one(np.ascontiguousarray(plane, np.float32)) for plane in np.moveaxis(pixels, 2, 0)]
    return np.rint(np.stack(planes, 2)).clip(0, 2**16 - 1).astype(pixels.dtype)
