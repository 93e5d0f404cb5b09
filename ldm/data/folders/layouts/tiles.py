"""Tiles of maps and large images, cut at several scales: 14/8529/5765.png, scan_files/11/3_2.jpg, TileGroup0/3-1-2.jpg.

Sources: slippy maps as OpenStreetMap names them, DeepZoom, Zoomify.
"""

import posixpath
import re
from collections.abc import Sequence

from ldm.data.reading.findings import Findings, examples, plural
from ldm.data.reading.paths import stem

_DEEPEST = 24  # zoom levels
_MANY = 32  # tiles that show that a single level of numbers is one
_SLIPPY = re.compile(r"(.*/)?(?P<level>\d{1,2})/(?P<x>\d+)/(?P<y>\d+)(@[234]x)?")
_DEEP_ZOOM = re.compile(r"(.*/)?[^/]+_files/(?P<level>\d{1,2})/\d+_\d+")
_ZOOMIFY = re.compile(r"(.*/)?TileGroup\d+/(?P<level>\d{1,2})-\d+-\d+")


def are_tiles(paths: Sequence[str]) -> bool:
    """Whether all images are tiles, by their paths."""
    levels = {level_of_tile(path) for path in paths}
    if not paths or None in levels:
        return False
    is_slippy = not any(_DEEP_ZOOM.fullmatch(stem(path)) or _ZOOMIFY.fullmatch(stem(path)) for path in paths)
    # classes may be numbers too: of a single level, the tiles have to be many
    return not is_slippy or len(levels) > 1 or len(paths) >= _MANY


def level_of_tile(path: str) -> str | None:
    """The zoom level of a tile, None for other paths."""
    name = stem(path)
    if match := _DEEP_ZOOM.fullmatch(name) or _ZOOMIFY.fullmatch(name):
        return match["level"]
    if match := _SLIPPY.fullmatch(name):
        level = int(match["level"])
        return match["level"] if level <= _DEEPEST and max(int(match["x"]), int(match["y"])) < 2**level else None
    return None


def report_tiles(paths: Sequence[str], findings: Findings) -> None:
    """Warns of tiles at several scales, which show the same places; tiles of one scale are only a remark."""
    if not are_tiles(paths):
        return
    levels = sorted({str(level_of_tile(path)) for path in paths}, key=int)
    if len(levels) == 1:
        message = f"to judge by their paths, the images are tiles of zoom level {levels[0]}"
        findings.remark(f"{message}: neighbours may be on both sides of the split")
        return
    message = f"the images are tiles of {len(levels)} zoom levels, to judge by their paths ({examples(levels)})"
    result = "each is read as a separate image, and the same place may be for validation at another scale"
    findings.warn(f"{message}: {result}; {_step(paths, levels)}")


def _step(paths: Sequence[str], levels: Sequence[str]) -> str:
    """The next step for the user: how to have only the finest level read."""
    finest = [path for path in paths if level_of_tile(path) == levels[-1]]
    count = plural(len(finest), "tile")
    if all(_DEEP_ZOOM.fullmatch(stem(path)) for path in paths):
        return f"data.without='[{','.join(levels[:-1])}]' keeps the finest level, {count}"
    folders = {posixpath.dirname(posixpath.dirname(path)) for path in finest if _SLIPPY.fullmatch(stem(path))}
    if len(folders) == 1:  # data.without= would leave out columns of tiles with a level's number too
        return f"data.root=.../{folders.pop()} data.classes=none reads the finest level, {count}"
    return "keep the tiles of one level"
