"""How near images of emoji scenes are to the art: each is compared with the nearest legal scene of its caption.

A scene is composed, so what a caption allows is known: its objects on its background, at every place of the jitter. The
nearest legal scene is the one of least squared error. Objects never overlap (`Placing`), so each has its best place
whatever the other's. For an object r (3, S, S) on a background b, at the place whose window of the image is x, the
squared error is that of the plain background, plus

    sum (x - r)^2 - (x - b)^2 = -2 sum x (r - b) + const

and the best place is where the correlation of the image with r - b is greatest.
"""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ldm.common.errors import UserError
from ldm.data.sources.emoji import BACKGROUNDS, Emoji
from ldm.data.sources.scenes import Scenes
from ldm.data.storage.table import Table

CAP = 100.0  # dB of an exact copy. One value of a 64x64 image off by one in 8 bits leaves 89 dB.
BOUNDS = (20, 24)  # dB: from the first on an image looks right at a glance, from the second on clean
LOW = 0.05  # the share of images that "worst 5 %" leaves below


@dataclass(frozen=True)
class Fitted:
    """N images against the nearest legal scenes of their captions.

    `psnr` (N,) in dB, at most CAP; `grain` (N,) in units of 255; `places` (N, 2 objects, 2) top-left corners;
    `nearest` (N, 3, H, W) uint8; `two` (N,) bool, whether the caption has two objects.
    """

    psnr: np.ndarray
    grain: np.ndarray
    places: np.ndarray
    nearest: np.ndarray
    two: np.ndarray

    def worst(self, n: int) -> np.ndarray:
        """The rows of the n images that are furthest from a legal scene, the worst first."""
        return np.argsort(self.psnr, kind="stable")[:n]


def fit(emoji: Emoji, images: Tensor, scenes: Scenes) -> Fitted:
    """Compares images (N, 3, H, W) uint8 with `scenes`. Raises UserError for images of another size than the scenes."""
    pixels = images.cpu().numpy()
    if pixels.shape != (len(scenes), 3, emoji.size, emoji.size) or pixels.dtype != np.uint8:
        raise UserError(
            f"images {tuple(pixels.shape)} of {pixels.dtype} can't be compared with {len(scenes)} scenes of 3 channels "
            f"and {emoji.size}x{emoji.size} in 8 bits; give one image of that kind for each scene."
        )
    places = best_places(emoji, pixels, scenes)
    nearest, _ = emoji.compose_at(scenes, places)
    difference = pixels.astype(np.float64) - nearest
    plain = (nearest == colours(scenes)).all(1)  # (N, H, W), what shows as background
    return Fitted(
        psnr=decibels(difference),
        grain=grain_of(difference, plain),
        places=places,
        nearest=nearest,
        two=scenes.second >= 0,
    )


def best_places(emoji: Emoji, images: np.ndarray, scenes: Scenes) -> np.ndarray:
    """The corners (N, 2 objects, 2) of the legal scenes nearest to images (N, 3, H, W) uint8."""
    places, free, sides = emoji.placing.middles(scenes), emoji.placing.free(scenes), emoji.placing.sides(scenes)
    rendered, _ = emoji.compose_at(scenes, places)
    ink = rendered.astype(np.float64) - colours(scenes)  # (N, 3, H, W): what the objects add to the background
    for i, image in enumerate(images):
        objects = 2 if scenes.second[i] >= 0 else 1
        for k in range(objects):
            row, column = places[i, k]
            own_ink = ink[i, :, row : row + sides[i], column : column + sides[i]]
            places[i, k] += _best_shift(emoji, image, own_ink, corner=(row, column), free=free[i, k])
    return places


def _best_shift(
    emoji: Emoji, image: np.ndarray, ink: np.ndarray, *, corner: tuple[int, int], free: np.ndarray
) -> np.ndarray:
    """The shift (2,) from `corner` at which ink (3, S, S) correlates most with an image (3, H, W)."""
    shifts, step = emoji.placing.shifts, emoji.placing.step
    axes = [shifts if along else np.zeros(1, int) for along in free]
    down, right = (slice(at + axis[0], at + axis[-1] + 1, step) for at, axis in zip(corner, axes, strict=True))
    windows = np.lib.stride_tricks.sliding_window_view(image.astype(np.float64), ink.shape[1:], (1, 2))
    fits = np.einsum("cyxij,cij->yx", windows[:, down, right], ink)  # (shifts down, shifts right)
    y, x = np.unravel_index(fits.argmax(), fits.shape)
    return np.array([axes[0][y], axes[1][x]])


def colours(scenes: Scenes) -> np.ndarray:
    """The backgrounds (N, 3, 1, 1) uint8."""
    return np.array(list(BACKGROUNDS.values()), np.uint8)[scenes.background][:, :, None, None]


def decibels(difference: np.ndarray) -> np.ndarray:
    """PSNR (N,) of differences (N, 3, H, W) in units of 255, at most CAP."""
    error = np.square(difference).mean((1, 2, 3))
    return np.minimum(CAP, -10 * np.log10(np.maximum(error / 255**2, 1e-30)))


def grain_of(difference: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """The standard deviation (N,) of differences (N, 3, H, W) over chosen pixels (N, H, W), the root mean square of the
    three channels. A background that merely has another shade has no grain."""
    weight = chosen[:, None] / chosen.sum((1, 2))[:, None, None, None]
    mean = (difference * weight).sum((2, 3))  # (N, 3)
    variance = (np.square(difference) * weight).sum((2, 3)) - np.square(mean)
    return np.sqrt(np.maximum(variance, 0).mean(1))


def summary(fitted: Fitted, chosen: np.ndarray | None = None) -> dict[str, float]:
    """The figures of the chosen images (a mask (N,)), or of all. One image in 20 has a PSNR below "worst 5 %"."""
    chosen = np.ones(len(fitted.psnr), bool) if chosen is None else chosen
    psnr, grain = fitted.psnr[chosen], fitted.grain[chosen]
    figures = {"median": float(np.median(psnr)), "worst 5 %": float(np.quantile(psnr, LOW))}
    figures |= {f"above {bound} dB": float((psnr > bound).mean()) for bound in BOUNDS}
    return figures | {"grain": float(grain.mean())}


def by_objects(fitted: Fitted) -> dict[str, dict[str, float]]:
    """`summary` of all images, of those with one object, and of those with two; without empty groups."""
    groups = {"all": np.ones_like(fitted.two), "one object": ~fitted.two, "two objects": fitted.two}
    return {name: summary(fitted, chosen) for name, chosen in groups.items() if chosen.any()}


def variance_of_places(emoji: Emoji, places: np.ndarray, scenes: Scenes) -> float:
    """How much of the data's jitter images cover: 1 means as much as the data, 0 always the same place.

    It is the variance of the fitted places of one caption relative to the data's, averaged over captions and the axes
    along which their objects shift.

    `places` (R, C, 2 objects, 2): R images, at least two, of each of C scenes.
    """
    free = emoji.placing.free(scenes)  # (C, 2, 2)
    if not (len(places) > 1 and free.any()):
        raise UserError("the variance of places needs at least two images per caption.")
    return float(places.var(0, ddof=1)[free].mean() / np.square(emoji.placing.shifts).mean())


def scenes_of(table: Table, rows: np.ndarray) -> Scenes:
    """The scenes that the captions of these rows of emoji's table describe."""
    names = ("first", "second", "relation", "background", "size")
    return Scenes(**{name: np.asarray(table.columns[name])[rows].astype(np.int64) for name in names})
