"""What the tests of folders share: folders of small images, and what is read of them."""

import json
from pathlib import Path

from ldm.data.preparing.summary import Facts
from ldm.data.sources.folder import Folder


def lay_out(root: Path, *paths: str) -> Path:
    """Images of 4x4, the i-th grey of i; other endings hold their own path as text."""
    for i, path in enumerate(paths):
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix in (".png", ".jpg", ".ppm"):
            file.write_bytes(b"P6\n4 4\n255\n" + bytes([i] * 48))  # read by what it holds, not by its ending
        else:
            file.write_text(path)
    return root


def describe(root: Path, *rows: dict) -> None:
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))


def tables(root: Path, **options):
    return Folder(str(root), **options).tables(root.parent / "cache")


def facts(root: Path) -> Facts:
    (folder,) = (root.parent / "cache").iterdir()
    return Facts.load(folder)


def names(tables) -> list[str]:
    return sorted(name for table in tables for name in table.names)


def numbered(*folders: str, n: int = 3) -> list[str]:
    return [f"{folder}/{i}.png" for folder in folders for i in range(n)]
