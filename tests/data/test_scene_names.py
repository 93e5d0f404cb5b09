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
