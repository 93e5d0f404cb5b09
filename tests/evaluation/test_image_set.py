"""Sets of images: sets that were prepared differently aren't compared."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.common.errors import UserError
from ldm.data.storage.table import Table
from ldm.evaluation.measures.image_set import ImageSet, from_bytes, refuse_unlike, to_bytes
from ldm.images import Preprocess


def write(folder: Path, n: int, side: int) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(n):
        Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)).save(folder / f"{i:03d}.png")
    return folder


def test_a_table_and_a_model_s_output_of_the_same_preprocessing_are_alike(digits: tuple[Table, Table]) -> None:
    _, val = digits
    real = ImageSet.of_table(val, np.arange(4), "real")
    generated = ImageSet.of_tensor(torch.zeros(4, 1, 16, 16), val.preprocess, "drawn")
    refuse_unlike(real, generated)


@pytest.mark.parametrize("change", [{"resize": "cover"}, {"height": 8}, {"bits": 16}, {"background": [255]}])
def test_other_preprocessing_is_refused_by_name(digits: tuple[Table, Table], change: dict) -> None:
    _, val = digits
    own = {"channels": 1, "height": 16, "width": 16, "resize": "stretch", "background": [0]}
    other = ImageSet.of_tensor(torch.zeros(4, 1, 16, 16), Preprocess(**(own | change)), "other")
    with pytest.raises(UserError, match=f"prepared differently.*{next(iter(change))}"):
        refuse_unlike(ImageSet.of_table(val, np.arange(4), "real"), other)


def test_a_folder_is_read_as_it_is(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", 5, 16)
    found = ImageSet.of_folder(folder, None, resize=False, most=10)
    assert found.images.shape == (5, 3, 16, 16)
    assert np.array_equal(found.images[3].permute(1, 2, 0), np.asarray(Image.open(folder / "003.png")))


def test_a_folder_of_another_size_is_refused_or_resized_if_requested(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", 3, 24)
    with pytest.raises(UserError, match="24x24 where 16x16.*prepared in the same way.*size="):
        ImageSet.of_folder(folder, Preprocess(3, 16, 16), resize=False, most=10)
    assert ImageSet.of_folder(folder, Preprocess(3, 16, 16), resize=True, most=2).images.shape == (2, 3, 16, 16)


def test_an_empty_or_absent_folder_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no images"):
        ImageSet.of_folder(tmp_path, None, False, 10)
    with pytest.raises(UserError, match="isn't a folder"):
        ImageSet.of_folder(tmp_path / "nowhere", None, False, 10)


def test_rounding_is_that_of_a_file() -> None:
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_bytes(from_bytes(every)), every)
    assert to_bytes(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]


def test_a_key_names_the_very_rows(digits: tuple[Table, Table]) -> None:
    train, val = digits
    keys = {ImageSet.of_table(t, np.arange(a, a + 3), "").key for t in (train, val) for a in (0, 1)}
    assert len(keys) == 4
