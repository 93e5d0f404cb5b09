"""Archives as people have them: what can't be unpacked is refused with the reason and the next step."""

import json
import os
import zipfile
from pathlib import Path

import pytest

from ldm.common.errors import UserError
from ldm.data.reading.store import ZipStore, open_store
from ldm.data.sources.folder import Folder
from tests.data.folders import facts, lay_out, names, numbered, tables

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
@pytest.mark.parametrize(("how", "message"), [({"flags": 1}, "is encrypted"), ({"method": 9}, "with Deflate64")])
def test_what_cannot_be_unpacked_in_place(tmp_path, beside, how, message):
    path = changed(packed(tmp_path / "d.zip", beside), **how)
    with pytest.raises(UserError, match=f"{message}.*: unpack the .zip, and give the folder as data.root"):
        Folder(str(path)).tables(tmp_path / "cache")


@pytest.mark.parametrize(("name", "content"), [("metadata.jsonl", ROWS), ("0.txt", "a cat")])
def test_damaged_words_are_refused_by_name(tmp_path, name, content):
    path = packed(tmp_path / "d.zip", {name: content})
    damaged = path.read_bytes().replace(b"a cat", b"a c\xc3t", 1)
    path.write_bytes(damaged)
    with pytest.raises(UserError, match=rf"{name} can't be read \(Bad CRC-32.*: fetch it again, or remove it"):
        ZipStore(path).text(name)


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("d.tar.gz", "unpack it, and give the folder"),
        ("a.png", "give the folder that holds the images"),
        ("captions.csv", "give the folder of the images as data.root, and put the table into it"),
        ("d.parquet", "data=huggingface data.dataset=.*d.parquet reads it"),
    ],
)
def test_other_files_are_refused_with_the_way(tmp_path, name, step):
    (tmp_path / name).write_bytes(b"\x1f\x8b")
    with pytest.raises(UserError, match=f"can't be read as a .zip .*{step}"):
        open_store(tmp_path / name)


def test_a_pattern_is_no_root(tmp_path):
    with pytest.raises(UserError, match="patterns aren't read"):
        open_store(tmp_path / "*.png")


def test_an_archive_with_backslashes_links_and_a_name_twice(tmp_path):
    path = packed(tmp_path / "d.zip", {"sub\\2.png": PPM, "sub\\2.txt": "a cat"})
    link = zipfile.ZipInfo("link.png")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr(link, "0.png")
        archive.writestr("0.png", PPM.replace(b"\0", b"\7"))
    found = Folder(str(path), columns=["text"]).tables(tmp_path / "cache")
    assert names(found) == ["0.png", "1.png", "sub/2.png"]
    assert "a cat" in [text for table in found for text in table.columns["text"]]
    assert {7} == {
        int(table.images[i].max()) for table in found for i, name in enumerate(table.names) if name[0] == "0"
    }
    left = facts(path).left_out
    assert "same name as a later file" in left["0.png"] and "links in a .zip" in left["link.png"]


@pytest.mark.parametrize("name", ["pipe.png", "0.txt", "metadata.jsonl"])
def test_pipes_are_named_and_never_opened(tmp_path, name):
    root = lay_out(tmp_path / "d", "0.png", "1.png")
    os.mkfifo(root / name)
    assert names(tables(root)) == ["0.png", "1.png"]
    assert facts(root).left_out == {name: "not regular files (pipes, sockets or devices)"}


@pytest.mark.parametrize("left", [3, 0])
def test_a_folder_without_permission_is_named(tmp_path, monkeypatch, left):
    root = lay_out(tmp_path / "d", *numbered("birds"), *numbered("cats", n=left))
    scan = os.scandir

    def refuse(path):  # as the superuser, who may run this, is refused nothing
        if os.fspath(path).endswith("birds"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    message = "1 folder can't be opened, so their content is missing: birds/"
    if left:
        assert names(tables(root)) == numbered("cats") and facts(root).notes[0].startswith(message)
    else:
        with pytest.raises(UserError, match=rf"too few images \(0\).*{message}"):
            tables(root)


def test_hidden_images_are_counted_and_junk_is_not(tmp_path):
    hidden = [".0.png", ".private/1.png", "a/.b/c/2.png"]
    junk = ["._0.png", ".git/3.png", ".cache/4.png", ".private/._1.png", "__MACOSX/._0.png"]
    root = lay_out(tmp_path / "d", *hidden, *junk)
    with pytest.raises(UserError, match=r"too few images \(0\).*Hidden, since .* begins with a dot: .*\(3 files\)"):
        tables(root)
    lay_out(root, "0.png", "1.png")
    assert names(tables(root)) == ["0.png", "1.png"] and set(facts(root).left_out) == {*hidden}
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
        for path in [*hidden, *junk, "0.png", "1.png"]:
            archive.write(root / path, path)
    assert ZipStore(tmp_path / "d.zip").hidden == sorted(hidden)


def test_runs_and_caches_in_the_folder_of_the_images_are_no_data(tmp_path):
    root = lay_out(tmp_path / "d", "0.png", "1.png", "2.png")
    before, _ = Folder(str(root)).tables(root / "runs" / "cache" / "data")
    lay_out(
        root, "runs/vae/a/config.yaml", "runs/vae/a/model/x", "runs/vae/a/checkpoints/x", "runs/vae/a/samples/1.png"
    )
    lay_out(root, "mine/checkpoints/3.png")
    found = tables(root)
    assert names(found) == ["0.png", "1.png", "2.png", "mine/checkpoints/3.png"] and len(before) == 2
    assert "aren't read as data: runs/cache, runs/vae/a" in " ".join(facts(root).asides)


def test_placeholders_of_icloud_and_links_to_nothing_are_named(tmp_path):
    root = lay_out(tmp_path / "d", "0.png", "1.png", "2.png", ".3.heic.icloud", ".tmp.driveupload/4.png")
    (root / "5.png").symlink_to(tmp_path / "nowhere.png")
    tables(root, max_bad_share=0.5)
    about = facts(root)
    assert "not downloaded from iCloud" in about.left_out[".3.heic.icloud"] and len(about.left_out) == 1
    assert about.bad == {"5.png": "is a link to a missing file"}
