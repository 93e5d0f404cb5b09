"""Archives as people have them: what can't be unpacked is refused with the reason and the next step."""

import json
import zipfile
from pathlib import Path

import pytest

from ldm.data.folder import Folder
from ldm.data.store import ZipStore, open_store
from ldm.errors import UserError

PPM = b"P6\n4 4\n255\n" + bytes(48)
ROWS = "\n".join(json.dumps({"file_name": f"{i}.png", "text": "a cat"}) for i in range(2))


def packed(path: Path, more: dict[str, str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {"0.png": PPM, "1.png": PPM, **more}.items():
            archive.writestr(name, content)
    return path


def changed(path: Path, flags: int = 0, method: int = 0) -> Path:
    """The archive, its files marked as encrypted (flag 1) or as packed by another method."""
    content = bytearray(path.read_bytes())
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = -1
        while (start := content.find(mark, start + 1)) >= 0:
            content[start + at] |= flags
            content[start + at + 2] = method
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("beside", [{"metadata.jsonl": ROWS}, {"0.txt": "a cat", "1.txt": "a dog"}])
@pytest.mark.parametrize(("how", "said"), [({"flags": 1}, "is encrypted"), ({"method": 9}, "by Deflate64")])
def test_what_cannot_be_unpacked_in_place(tmp_path, beside, how, said):
    path = changed(packed(tmp_path / "d.zip", beside), **how)
    with pytest.raises(UserError, match=f"{said}.*: unpack the .zip, and name the folder as data.root"):
        Folder(str(path)).tables(tmp_path / "cache")


@pytest.mark.parametrize(("name", "content"), [("metadata.jsonl", ROWS), ("0.txt", "a cat")])
def test_damaged_words_are_refused_by_name(tmp_path, name, content):
    path = packed(tmp_path / "d.zip", {name: content})
    damaged = path.read_bytes().replace(b"a cat", b"a c\xc3t", 1)
    path.write_bytes(damaged)
    with pytest.raises(UserError, match=rf"{name} can't be read \(Bad CRC-32.*: fetch it again, or remove it"):
        ZipStore(path).text(name)


def test_other_archives_are_refused_with_the_way(tmp_path):
    (tmp_path / "d.tar.gz").write_bytes(b"\x1f\x8b")
    with pytest.raises(UserError, match=r"can't be read as a .zip .*unpack it, and name the folder"):
        open_store(tmp_path / "d.tar.gz")
