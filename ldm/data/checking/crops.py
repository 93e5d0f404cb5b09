"""How preprocessing changes the images' sizes: their aspects, what is cropped away, and what is enlarged."""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ldm.images import Preprocess

LARGE_CROP = 0.3  # a larger share of an image that is cropped away is reported
ENLARGED = 1.5  # images enlarged by more are reported
STRETCHED = 1.2  # a change of the aspect by more is reported


@dataclass
class Sizes:
    """The images' own `height` and `width` (N,), and the size `to` (N, 2) that they are brought to by `resize`."""

    height: np.ndarray
    width: np.ndarray
    to: np.ndarray
    resize: str

    @classmethod
    def of(cls, frames: np.ndarray, preprocess: Preprocess) -> "Sizes":
        """The sizes that frames (N, 6) hold: see `Preprocess.frame`."""
        size = frames.astype(np.float64)
        return cls(height=size[:, 0], width=size[:, 1], to=size[:, 4:6], resize=preprocess.resize)

    @cached_property
    def scale(self) -> np.ndarray:
        """The factor by which each image is enlarged (N,); below 1 it is reduced."""
        ratios = self.to / np.stack([self.height, self.width], 1)  # (N, 2)
        return ratios.min(1) if self.resize == "contain" else ratios.max(1)

    @cached_property
    def lost(self) -> np.ndarray:
        """The share of each image that is cropped away (N,)."""
        if self.resize not in ("cover", "none"):
            return np.zeros(len(self.height))
        kept = self.to.prod(1) / (self.height * self.width * self.scale**2)
        return np.clip(1 - kept, 0, 1)

    @cached_property
    def stretch(self) -> np.ndarray:
        """The factor by which the aspect of each image changes (N,): 1 means not at all, 2 means doubled or halved."""
        if self.resize != "stretch":
            return np.ones(len(self.height))
        ratio = (self.to[:, 1] / self.to[:, 0]) / (self.width / self.height)
        return np.maximum(ratio, 1 / ratio)

    def enlarged(self) -> np.ndarray:
        """The numbers of images that are enlarged by more than a half, the smallest first."""
        rows = np.flatnonzero(self.scale > ENLARGED)
        return rows[np.argsort(-self.scale[rows], kind="stable")]

    def cropped(self) -> np.ndarray:
        """The numbers of images that lose more than 30% by cropping, the largest loss first."""
        rows = np.flatnonzero(self.lost > LARGE_CROP)
        return rows[np.argsort(-self.lost[rows], kind="stable")]

    def stretched(self) -> np.ndarray:
        """The numbers of images whose aspect changes by more than a fifth, the most changed first."""
        rows = np.flatnonzero(self.stretch > STRETCHED)
        return rows[np.argsort(-self.stretch[rows], kind="stable")]

    def common(self, most: int = 8) -> dict[str, int]:
        """The most frequent sizes, as height x width, each with its number of images."""
        counts = Counter(zip(self.height.astype(int).tolist(), self.width.astype(int).tolist(), strict=True))
        return {f"{h}x{w}": count for (h, w), count in counts.most_common(most)}

    def aspects(self) -> dict[str, int]:
        """The number of images of each aspect, width to height."""
        log = np.log2(self.width / self.height)
        edges = {"below 1:2": -1.05, "1:2 to 4:5": -0.32, "about square": 0.32, "5:4 to 2:1": 1.05}
        counts, below = {}, np.zeros(len(log), bool)
        for name, edge in edges.items():
            here = (log < edge) & ~below
            counts[name], below = int(here.sum()), below | here
        counts["above 2:1"] = int((~below).sum())
        return {name: count for name, count in counts.items() if count}
