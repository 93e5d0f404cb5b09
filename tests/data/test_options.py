"""Options of sources that make no image are answered in words, alike by every source, before anything is read."""

import pytest

from ldm.common.errors import UserError
from ldm.data import Folder, HuggingFace, Shards, TorchVision

SOURCES = {
    "folder": lambda **options: Folder("nowhere", **options),
    "shards": lambda **options: Shards("nowhere", **options),
    "hugging face": lambda **options: HuggingFace("nowhere", **options),
    "torchvision": lambda **options: TorchVision("MNIST", **options),
}
WRONG = [
    ({"size": [16]}, r"data.size=\[16\]: give one number"),
    ({"size": [16, 24, 3]}, r"data.size=\[16, 24, 3\]: give one number"),
    ({"size": 0}, "make no image"),
    ({"channels": 0}, "make no image"),
    ({"size": 16, "channels": 0}, "make no image"),
    ({"resize": "fit"}, "resize=fit is unknown"),
]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(("options", "words"), WRONG)
def test_what_makes_no_image_is_refused(source, options, words):
    with pytest.raises(UserError, match=words):
        SOURCES[source](**options)


@pytest.mark.parametrize("source", ["folder", "shards", "hugging face"])
@pytest.mark.parametrize("bits", [0, 12])
def test_bits_that_images_cant_have_are_refused(source, bits):
    with pytest.raises(UserError, match=f"bits={bits}: images have 8 or 16 bits"):
        SOURCES[source](bits=bits)
