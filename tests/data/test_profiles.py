"""Colour profiles and control images on their way into tables, and caches that earlier code made."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import torchvision.datasets
from PIL import Image

from ldm.data.sources import torchvision_sets as vision
from ldm.data.sources.folder import Folder
from ldm.data.sources.shards import Shards
from ldm.data.sources.torchvision_sets import TorchVision
from ldm.data.storage.cached import cached
from ldm.data.storage.table import Table, hash_of
from ldm.images import Preprocess
from tests.icc import display_p3

STORED, IN_SRGB = (40, 200, 60), [0, 204, 12]


def write(root: Path, n: int = 4) -> None:
    root.mkdir(parents=True)
    for i in range(n):
        Image.new("RGB", (8, 8), STORED).save(root / f"{i}.png", icc_profile=display_p3())


def as_the_code_before_made(cache: Path, key: str) -> None:
    """A whole cache of unconverted pixels."""
    pixels = np.full((1, 3, 8, 8), 40, np.uint8)
    tables = [Table(pixels, {}, Preprocess(3, 8, 8), f"{key}-{name}", ["0.png"]) for name in ("train", "val")]
    cached(cache, key, lambda _: (tables[0], tables[1]))
    (cache / key / "skipped.json").write_text("{}")


def first_pixels(tables) -> list[list[int]]:
    return [pixel.tolist() for table in tables for pixel in np.asarray(table.images[:, :, 0, 0])]


def test_a_folders_old_cache_is_not_served(tmp_path):
    write(tmp_path / "d")
    source = Folder(str(tmp_path / "d"))
    entries = [list(source._splits[0][0].entries.items())]
    old = [source.size, source.channels, source.bits, source.options, source.columns, 0.05, 0.01]
    as_the_code_before_made(tmp_path / "cache", hash_of("folder-1", True, entries, old))
    assert first_pixels(source.tables(tmp_path / "cache")) == [IN_SRGB] * 4


def test_old_pieces_and_caches_of_shards_are_not_served(tmp_path):
    write(tmp_path / "d")
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for path in sorted((tmp_path / "d").iterdir()):
            tar.add(path, path.name)
    source = Shards(str(tmp_path / "s.tar"))
    stat = (tmp_path / "s.tar").stat()
    stamp = hash_of("shards-1", str(tmp_path / "s.tar"), [stat.st_size, stat.st_mtime_ns])
    old = [source.size, source.channels, source.bits, source.options, source.columns, 0.01]
    as_the_code_before_made(tmp_path / "cache", hash_of("shards-1", [stamp], [], 0.05, old))
    assert first_pixels(source.tables(tmp_path / "cache")) == [IN_SRGB] * 4


def test_images_of_torchvision_are_converted_and_turned(tmp_path, monkeypatch, caplog):
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.new("RGB", (8, 4), STORED).save(file, "PNG", icc_profile=display_p3(), exif=exif)

    class Photos:
        def __init__(self, root):
            pass

        def __len__(self):
            return 10

        def __getitem__(self, i):
            return Image.open(io.BytesIO(file.getvalue())).convert("RGB"), 0

    monkeypatch.setattr(torchvision.datasets, "Photos", Photos, raising=False)
    monkeypatch.setattr(vision, "READER", 1)
    old = vision._fingerprint(Photos(None))
    monkeypatch.undo()
    monkeypatch.setattr(torchvision.datasets, "Photos", Photos, raising=False)
    assert vision._fingerprint(Photos(None)) != old
    tables = TorchVision("Photos", root=str(tmp_path)).tables(tmp_path / "cache")
    assert tables[0].images.shape[1:] == (3, 8, 4)
    assert first_pixels(tables) == [IN_SRGB] * 10
    assert "9 of 9 images: colour profile converted to sRGB: Display P3" in caplog.text


def test_a_control_image_of_another_shape_is_bad(tmp_path):
    root = tmp_path / "d"
    rows = []
    for i in range(6):
        for name, size in ((f"{i}.png", (16, 8)), (f"c{i}.png", (8, 16) if i == 3 else (32, 16))):
            path = root / ("" if name[0] != "c" else "control") / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", size, (i, 0, 0)).save(path)
        rows.append({"file_name": f"{i}.png", "control": f"control/c{i}.png"})
    (root / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tables = Folder(str(root), size=8, max_bad_share=0.5).tables(tmp_path / "cache")
    assert sorted(name for table in tables for name in table.names) == [f"{i}.png" for i in (0, 1, 2, 4, 5)]
    for table in tables:
        assert (table.columns["control"][:, 0, 0, 0] == table.images[:, 0, 0, 0]).all()  # type: ignore[call-overload]
    skipped = next((tmp_path / "cache").glob("*/skipped.json")).read_text()
    assert "is 8x16 but its control is 16x8, of another shape" in skipped
