"""Files of one scene that are told apart by a word in their names."""

import pytest

from ldm.common.errors import UserError
from tests.data.folders import facts, lay_out, names, tables
from tests.data.test_about import fill


@pytest.mark.parametrize(("image", "about", "kind"), [("_sat", "_mask", "mask"), ("_rgb", "_depth", "depth")])
def test_masks_beside_images_with_marks_are_left_out_and_reported(tmp_path, image, about, kind):
    fill(tmp_path / "d", "photo", mark=image)
    fill(tmp_path / "d", kind, mark=about)
    assert names(tables(tmp_path / "d")) == [f"{i}{image}.png" for i in range(3)]
    reasons = facts(tmp_path / "d").left_out
    assert set(reasons) == {f"{i}{about}.png" for i in range(3)}
    assert all(reason.startswith(f"named *{about}.*, beside images of the same name") for reason in reasons.values())


def test_masks_marked_in_front(tmp_path):
    fill(tmp_path / "d", "photo")
    for i in range(3):
        (tmp_path / "d" / f"{i}.png").rename(tmp_path / "d" / f"img_{i}.png")
    fill(tmp_path / "d", "mask")
    for i in range(3):
        (tmp_path / "d" / f"{i}.png").rename(tmp_path / "d" / f"mask_{i}.png")
    assert names(tables(tmp_path / "d")) == [f"img_{i}.png" for i in range(3)]


def test_several_of_one_scene_are_reported_and_left_out_by_a_pattern(tmp_path):
    kinds = ("albedo", "normal", "roughness")
    root = lay_out(tmp_path / "d", *[f"{name}_{kind}_2k.png" for name in ("brick", "wood") for kind in kinds])
    assert len(names(tables(root))) == 6
    message = "(2 *_albedo_2k.*, 2 *_normal_2k.*, 2 *_roughness_2k.*), and all are used"
    assert message in facts(root).notes[0] and "data.without='[*_normal_2k.*,*_roughness_2k.*]'" in facts(root).notes[0]
    assert names(tables(root, without=["*_NORMAL*", "*_roughness*"])) == ["brick_albedo_2k.png", "wood_albedo_2k.png"]
    with pytest.raises(UserError, match=r"no file like '\*_mask\*'"):
        tables(root, without=["*_mask*"])


@pytest.mark.parametrize("paths", [["cat.0.png", "dog.0.png"], ["0_left.png", "0_right.png"], ["mask_1.png", "b.png"]])
def test_other_names_are_taken_without_a_word(tmp_path, paths):
    assert names(tables(lay_out(tmp_path / "d", *paths))) == sorted(paths)
    assert not facts(tmp_path / "d").notes


@pytest.mark.parametrize(
    ("names", "counts"),
    [
        (["a/B02.png", "a/B8A.png", "b/B02.png", "b/B8A.png"], "2 b02, 2 b8a"),
        (["T1_B02_10m.png", "T1_B03_10m.png", "T2_B02_10m.png", "T2_B03_10m.png"], "2 b02, 2 b03"),
        (["A01_s1_w1.png", "A01_s1_w2.png", "A02_s1_w1.png", "A02_s1_w2.png"], "2 w1, 2 w2"),
        (
            ["r1f1p1-ch1sk1fk1.png", "r1f1p1-ch2sk1fk1.png", "r2f1p1-ch1sk1fk1.png", "r2f1p1-ch2sk1fk1.png"],
            "2 ch1, 2 ch2",
        ),
        (["x_EV-2.png", "x_EV+2.png", "y_EV-2.png", "y_EV+2.png"], "2 ev+2, 2 ev-2"),
        (["ch01_p01.png", "ch01_p02.png", "ch02_p01.png", "ch02_p02.png"], None),
        (["b01.png", "b02.png", "b03.png", "b04.png"], None),
    ],
)
def test_bands_of_a_scene_in_several_files_are_reported(tmp_path, names, counts):
    tables(lay_out(tmp_path / "d", *names))
    notes = " ".join(facts(tmp_path / "d").notes)
    assert f"2 scenes have bands or channels in several files, to judge by the names ({counts})" in notes or not counts
    assert counts or "bands" not in notes
