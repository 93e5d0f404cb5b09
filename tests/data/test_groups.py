"""Images that belong together, and tiles of one place."""

import json

import pytest

from ldm.common.errors import UserError
from ldm.data.folders.classes import classes_of
from ldm.data.folders.layouts.groups import check_group, report_series
from ldm.data.folders.layouts.tiles import report_tiles
from ldm.data.reading.findings import Findings
from tests.data.folders import describe, facts, lay_out, names, tables


def sides(root, part: int, **options) -> list[set[str]]:
    """The first letters of the names on each side of the split."""
    return [{name[:part] for name in table.names} for table in tables(root, **options)]


@pytest.mark.parametrize("group", ["name", r"(p\d)", r"(x)?(?P<group>patient\d)"])
def test_a_group_is_on_one_side_of_the_split(tmp_path, group):
    paths = [f"patient{i}_slice{j}.png" for i in range(3) for j in range(4)]
    root = lay_out(tmp_path / "d", *paths)
    group = group.replace("(p", "(t")
    train, val = sides(root, 8, group=group)
    assert not train & val and len(val) == 1 and len(train) == 2
    assert f"groups by data.group={group}" in facts(root).split
    assert not any("series" in note for note in facts(root).notes)


def test_folders_are_groups(tmp_path):
    root = lay_out(tmp_path / "d", *[f"patient{i}/{j}.png" for i in range(3) for j in range(4)])
    with pytest.raises(UserError, match="each holds all images of a class. data.classes=none"):
        tables(root, group="folder")
    train, val = sides(root, 8, group="folder", classes="none")
    assert not train & val and val


def test_the_split_without_the_option_is_as_before(tmp_path):
    plain = tables(lay_out(tmp_path / "a", *[f"{i:02}.png" for i in range(20)]))
    series = tables(lay_out(tmp_path / "b", *[f"clip{i // 10}_{i:02}.png" for i in range(20)]))
    assert [name[:2] for name in plain[1].names] == [name[6:8] for name in series[1].names]
    assert names(plain[1:]) == [name[6:] for name in names(series[1:])]


@pytest.mark.parametrize(
    ("group", "words"),
    [
        ("patient", "no metadata file has values in a column 'patient'"),
        ("patient/", "has no parentheses"),
        ("(", "isn't a regular expression"),
        ("(dog)", "matches nothing in the paths of 4 of 4 images"),
        ("(slice)", "finds one group, slice"),
    ],
)
def test_a_group_that_finds_none_is_refused(tmp_path, group, words):
    root = lay_out(tmp_path / "d", *[f"p1_slice{i}.png" for i in range(4)])
    with pytest.raises(UserError) as error:
        tables(root, group=group)
    assert words in str(error.value)


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv", "metadata.tsv"])
def test_a_column_of_the_metadata_is_the_group(tmp_path, name):
    root = lay_out(tmp_path / "d", *[f"{i}.png" for i in range(8)])
    rows = [{"file_name": f"{i}.png", "patient_id": f"p{i % 3}"} for i in range(8)]
    mark = {"metadata.csv": ",", "metadata.tsv": "\t"}.get(name)
    lines = [mark.join(row.values()) if mark else json.dumps(row) for row in rows]
    (root / name).write_text("\n".join([mark.join(rows[0]), *lines] if mark else lines))
    train, val = [{int(n[0]) % 3 for n in table.names} for table in tables(root, group="patient_id")]
    assert not train & val and val
    assert "groups by data.group=patient_id" in facts(root).split
    assert not any("patient_id" in note for note in facts(root).notes), "it is read"


def test_an_image_without_a_value_in_the_column_of_groups_is_named(tmp_path):
    root = lay_out(tmp_path / "d", *[f"{i}.png" for i in range(3)])
    describe(root, *[{"file_name": f"{i}.png", "scene": value} for i, value in enumerate(["a", 7, None])])
    with pytest.raises(UserError, match=r"'scene' of the metadata is empty for 1 of 3 images \(2.png\)"):
        tables(root, group="scene")


def test_groups_on_both_sides_of_given_splits_are_reported(tmp_path):
    root = lay_out(tmp_path / "d", "train/p1_1.png", "train/p2_1.png", "val/p2_2.png", "val/p3_1.png")
    tables(root, group=r"(p\d)")
    assert any("training and validation share 1 group of data.group=(p\\d)" in n for n in facts(root).notes)


def series_of(*paths: str, labelled: bool = False) -> str:
    findings = Findings()
    report_series(paths, labelled, findings)
    return " ".join(findings.warnings)


@pytest.mark.parametrize(
    ("pattern", "step"),
    [
        ("patient{:03}_slice{:03}.png", "data.group=name keeps"),
        ("clip{}_frame_{:04}.png", "data.group=name keeps"),
        ("dance{}/frame_{:04}.png", "data.group=folder keeps"),
        ("Case-{}/{:03}.png", "data.group=folder keeps"),
        ("scans/case_{:02}_{:03}.png", "data.group=name keeps"),
        ("BraTS20_Training_00{}_{}.png", "data.group=name keeps"),
        ("clip{}_mp4-{}_jpg.rf.0a1b2c.jpg", "data.group=name keeps"),
        ("patient{}/T1/{}.png", "'data.group=\"([^/]+)/\"' keeps"),
        ("1.2.840.10008.5.{}/1.2.840.113619.2.{}.png", "data.group=folder keeps"),
        ("a/2011_09_26_drive_000{}_sync/image_02/data/{:010}.png", "'data.group=\"^(([^/]+/){{2}})\"' keeps"),
    ],
)
def test_series_by_names_are_reported(pattern, step):
    said = series_of(*[pattern.format(i, j) for i in range(2) for j in range(5)])
    assert "of 2 series, to judge by their names" in said and step.replace("{{", "{").replace("}}", "}") in said


def test_folders_of_series_that_are_classes_are_reported():
    said = series_of(*[f"patient{i}/{j}.png" for i in range(2) for j in range(5)], labelled=True)
    assert "the folders as classes" in said and "data.group=folder data.classes=none" in said


def test_frames_of_one_clip_are_reported():
    assert "data.val_root=" in series_of(*[f"frame_{i:04}.png" for i in range(9)])


@pytest.mark.parametrize(
    "pattern",
    [
        *("IMG_2023{}_{}.png", "cat{}/{}.png", "cat.{}{}.png", "{}{}.png", "suitcase{}{}.png", "1{}_name/{:03}.png"),
        *("DSC0{}{}.JPG", "100CANON/IMG_{}{}.JPG", "n0144076{0}/n0144076{0}_1{1}7{1}6.JPEG", "{:06}{:06}.jpg"),
        *("images/{}{}.png", "{}_{:04}.png", "trip 202{}/IMG_{}.jpg", "session {}/{}.jpg", "flight {}/{}.jpg"),
    ],
)
def test_other_numbered_names_are_no_series(pattern):
    assert not series_of(*[pattern.format(i, j) for i in range(2) for j in range(5)])


@pytest.mark.parametrize("first", [0, 1])
def test_folders_whose_files_count_may_be_clips(tmp_path, first):
    root = lay_out(tmp_path / "d", *[f"480p/{clip}/{i + first:05}.jpg" for clip in ("bear", "dog") for i in range(4)])
    tables(root, classes="none")
    (said,) = facts(root).asides
    assert "2 folders are numbered like frames (480p/bear/, 480p/dog/)" in said and "data.group=folder keeps" in said
    assert not facts(root).is_warning
    train, val = sides(root, 8, classes="none", group="folder")
    assert not train & val and val


def test_classes_whose_files_count_are_half_a_line(tmp_path):
    root = lay_out(tmp_path / "d", *[f"{clip}/{i:05}.jpg" for clip in ("bear", "dog") for i in range(4)])
    assert tables(root)[0].classes == ("bear", "dog")
    (line,) = [line for line in facts(root).lines() if line.startswith("2 classes: bear, dog (if they are clips, ")]
    assert "data.group=folder data.classes=none" in line and not facts(root).notes + facts(root).asides


@pytest.mark.parametrize("pattern", ["{}/{:05}7.png", "{}/{}.png", "{}/b{:05}.png", "{}/{:03}", "10_{}/{}001.png"])
def test_other_folders_of_numbers_are_no_clips(pattern):
    findings = Findings()
    report_series([pattern.format(name, i) for name in "ab" for i in range(3 + ("03" not in pattern))], True, findings)
    assert not findings.class_note


def test_uids_as_names_are_remarked_on():
    findings = Findings()
    report_series([f"1.2.840.113619.2.{i}.png" for i in range(3)], False, findings)
    assert "the names are DICOM UIDs (1.2.840.113619.2.0.png, ...)" in findings.remarks[0]


def test_no_image_is_no_series():
    assert not series_of()


def test_the_expression_that_a_warning_names_keeps_series_together(tmp_path):
    root = lay_out(tmp_path / "d", *[f"patient{i}/T{k}/{j}.png" for i in range(3) for k in "12" for j in range(2)])
    tables(root)
    assert any("'data.group=\"([^/]+)/\"' data.classes=none" in note for note in facts(root).notes)
    train, val = sides(root, 8, group="([^/]+)/", classes="none", size=4, channels=3)
    assert not train & val and val


def test_augmented_copies_of_roboflow_are_on_one_side(tmp_path):
    root = lay_out(tmp_path / "d", *[f"{i}_jpg.rf.{j}abc.jpg" for i in "abcd" for j in range(3)])
    train, val = sides(root, 1)
    assert not train & val and val


def tiles_of(*paths: str) -> Findings:
    findings = Findings()
    report_tiles(paths, findings)
    return findings


def test_tiles_are_no_classes_and_are_reported(tmp_path):
    root = lay_out(tmp_path / "d", *[f"{z}/{x}/{y}.png" for z in (1, 2) for x in range(2) for y in range(2)])
    assert tables(root)[0].classes == ()
    (note,) = facts(root).notes
    assert "tiles of 2 zoom levels, to judge by their paths (1, 2)" in note
    assert "data.root=.../2 data.classes=none reads the finest level, 4 tiles" in note
    tables(root / "2", classes="none")  # the root that the message names


def test_tiles_of_large_images():
    said = tiles_of("a_files/0/0_0.jpg", "a_files/1/0_0.jpg").warnings[0]
    assert "2 zoom levels" in said and "data.without='[0]' keeps the finest level, 1 tile" in said
    assert "keep the tiles of one level" in tiles_of("TileGroup0/0-0-0.jpg", "TileGroup0/1-0-0.jpg").warnings[0]
    assert not tiles_of("3/9/1.png", "4/1/1.png").warnings, "9 isn't inside zoom level 3"
    assert "zoom level 14" in tiles_of(*[f"14/{x}/{y}.png" for x in range(6) for y in range(6)]).remarks[0]


def test_groups_by_a_word_are_known():
    assert check_group("folder") == "folder" and check_group(None) is None


@pytest.mark.parametrize("pattern", ["{0}/{1}/{2}/{3}.png", "{0}/{1}/holiday{3}.png"])
def test_folders_by_a_hash_are_no_classes(pattern):
    hashes = [f"{i * 2654435761 % 2**32:08x}" for i in range(1, 30)]
    findings = Findings()
    paths = [pattern.format(name[:2], name[2:4], name[4:6], name) for name in hashes]
    assert set(classes_of(paths, None, (), findings)) == {None}
    assert "aren't classes" in findings.remarks[0] and "data.classes=none" in findings.remarks[0]
