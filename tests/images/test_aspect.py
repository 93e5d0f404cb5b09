import io

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.common.errors import UserError
from ldm.images import BadImage, alike, check_alike, shape_of

FITS = (8, 8)


def png(width: int, height: int, **options) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, "PNG", **options)
    return file.getvalue()


def test_the_shape_of_whatever_is_given(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "a.png").write_bytes(png(20, 10))
    turned = png(10, 20, exif=exif)
    for item in (
        *(tmp_path / "a.png", str(tmp_path / "a.png"), png(20, 10), turned, Image.open(io.BytesIO(turned))),
        *(np.zeros((10, 20)), np.zeros((10, 20, 3)), np.zeros((3, 10, 20)), torch.zeros(3, 10, 20)),
    ):
        assert shape_of(item) == (10, 20)
    with pytest.raises(BadImage, match="nowhere.png"):
        shape_of("nowhere.png")


def test_rounding_is_no_other_aspect():
    assert alike((1000, 1500), (64, 96)) and alike((333, 500), (64, 96)) and alike((96, 100), (100, 100))
    assert not alike((64, 96), (96, 64)) and not alike((100, 100), (93, 100)) and not alike((93, 100), (100, 100))


def test_all_are_compared_with_the_first_that_is_given():
    wide, tall, square = png(20, 10), png(10, 20), png(9, 9)
    check_alike({"image": None, "mask": None, "map": wide, "control": png(64, 32)}, FITS)
    check_alike({"image": [wide, tall], "mask": [png(4, 2), png(2, 4)]}, FITS)
    check_alike({"image": [wide, tall], "mask": [png(4, 2), png(4, 2), png(2, 4), png(2, 4)]}, FITS)
    with pytest.raises(UserError, match="the map is 10x20, the control 9x9 .height x width.*same aspect"):
        check_alike({"image": None, "map": wide, "control": square}, FITS)
    with pytest.raises(UserError, match="the image is 10x20, the mask 20x10"):
        check_alike({"image": [wide, wide], "mask": [wide, tall]}, FITS)
    with pytest.raises(UserError, match="the mask 20x10"):
        check_alike({"image": [tall, wide], "mask": tall}, FITS)


def test_a_tensor_of_the_models_own_shape_was_cropped_already():
    check_alike({"image": png(20, 10), "mask": torch.zeros(8, 8)}, FITS)
    check_alike({"image": torch.zeros(2, 3, 8, 8), "mask": png(20, 10)}, FITS)
    with pytest.raises(UserError, match="the image is 16x16, the mask 10x20"):
        check_alike({"image": torch.zeros(3, 16, 16), "mask": png(20, 10)}, FITS)
    with pytest.raises(UserError, match="the mask 8x8"):
        check_alike({"image": png(20, 10), "mask": np.zeros((8, 8))}, FITS)
