"""The options of variants, which all sources of images share."""

from dataclasses import dataclass

from ldm.common.errors import UserError, did_you_mean

FLIPS: dict[str, tuple[tuple[int, ...], ...]] = {  # the axes of (..., H, W) that each version reverses
    "none": ((),),
    "horizontal": ((), (-1,)),
    "both": ((), (-1,), (-2,), (-2, -1)),
}
MOST_ZOOM = 4.0


@dataclass(frozen=True)
class Variants:
    """The variants that are made of each training image.

    - `flip`: `none`; `horizontal`: each image and its mirror image; `both`: also upside down, four versions.
    - `variants`: the number of versions of each image before flipping: the image itself and `variants` - 1 random ones.
    - `zoom` z: the random versions show a random part of the image, whose sides are 1/z to all of its own.
    - `augment` p: each of several geometric transforms is applied to a random version with probability p, and a label
      tells the network which: see `ldm.data.augmenting.transforms`.
    """

    flip: str = "none"
    variants: int = 1
    zoom: float = 1.0
    augment: float = 0.0

    def __post_init__(self) -> None:
        if self.flip not in FLIPS:
            raise UserError(f"data.flip={self.flip} is unknown.{did_you_mean(self.flip, FLIPS)}")
        if self.variants < 1:
            raise UserError(f"data.variants={self.variants}: give 1 (the images alone) or more.")
        if not 1 <= self.zoom <= MOST_ZOOM:
            raise UserError(f"data.zoom={self.zoom}: give 1 (no crops) to {MOST_ZOOM:g}.")
        if not 0 <= self.augment <= 1:
            raise UserError(f"data.augment={self.augment} is a probability: give 0 (none) to 1; 0.12 is usual.")
        varies = self.zoom > 1 or self.augment > 0
        if self.variants > 1 and not varies:
            raise UserError(
                f"data.variants={self.variants}: say how they differ, with data.zoom=1.3 (random crops) or "
                "data.augment=0.12 (for small sets)."
            )
        if varies and self.variants == 1:
            option = f"data.zoom={self.zoom:g}" if self.zoom > 1 else f"data.augment={self.augment:g}"
            raise UserError(f"{option} changes the variants of images: say how many with data.variants=8.")

    @property
    def count(self) -> int:
        """How many versions of each image there are."""
        return self.variants * len(FLIPS[self.flip])
