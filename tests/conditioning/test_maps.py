"""Maps of classes, joined to the latent or as tokens."""

import numpy as np
import pytest
import torch

from ldm.common.errors import UserError
from ldm.conditioning import MapTokens, SemanticMap
from ldm.data import Table
from ldm.images import Preprocess
from ldm.networks import Identity

IDS = torch.tensor([[[0, 1, 2, 2], [0, 1, 2, 2], [1, 1, 0, 2], [1, 1, 0, 0]]])


def test_area_gives_the_share_of_each_class() -> None:
    concat = SemanticMap(3, factor=2)(IDS).concat
    assert concat.shape == (1, 3, 2, 2)
    assert concat[0, :, 0, 0].tolist() == [0.5, 0.5, 0] and concat[0, :, 0, 1].tolist() == [0, 0, 1]
    assert concat[0, :, 1, 1].tolist() == [0.75, 0, 0.25]
    assert torch.equal(concat.sum(1), torch.ones(1, 2, 2))


def test_nearest_gives_one_class_and_unshuffle_all_of_them() -> None:
    nearest = SemanticMap(3, factor=2, resize="nearest")(IDS).concat
    assert torch.equal(nearest.argmax(1), IDS[:, 1::2, 1::2])
    part = SemanticMap(3, factor=2, resize="unshuffle")
    planes = torch.nn.functional.pixel_shuffle(part(IDS).concat, 2)
    assert part.concat_channels == 12 and torch.equal(planes.argmax(1), IDS)


@pytest.mark.parametrize("resize", ["area", "nearest", "unshuffle"])
def test_embedded_classes_have_the_declared_channels(resize: str) -> None:
    part = SemanticMap(3, factor=2, resize=resize, embed=5)
    concat = part(IDS).concat
    assert concat.shape[1] == part.concat_channels
    concat.square().sum().backward()
    assert part.embedding.grad.abs().sum() > 0
    assert (part(part.null_sized(2, (4, 4))).concat == 0).all()


def test_null_is_zero_and_what_is_dropped_is_null() -> None:
    part = SemanticMap(3, factor=2, size=[4, 6])
    assert part(part.null_values(2)).concat.shape == (2, 3, 2, 3)
    assert (part(part.null_values(2)).concat == 0).all()
    cond = part(IDS.repeat(2, 1, 1), torch.tensor([True, False]))
    assert (cond.concat[0] == 0).all() and torch.equal(cond.concat[1], part(IDS).concat[0])


def test_tokens_fit_any_size_and_tell_maps_apart() -> None:
    torch.manual_seed(0)
    part = MapTokens(3, grid=2, dim=8)
    small, large = part(IDS), part(IDS.repeat_interleave(2, 1).repeat_interleave(2, 2))
    assert small.tokens.shape == (1, 4, 8) and small.mask.all()
    torch.testing.assert_close(small.tokens, large.tokens)  # the same image, twice as large
    assert not torch.allclose(part(IDS.flip(1)).tokens, small.tokens)
    null = part(part.null_sized(1, (4, 4))).tokens
    assert torch.equal(part(IDS, torch.tensor([True])).tokens, null)


@pytest.mark.parametrize("cls", [SemanticMap, MapTokens])
def test_classes_are_read_off_the_data(cls: type) -> None:
    images, preprocess = np.zeros((2, 1, 4, 4), np.uint8), Preprocess(1, 4, 4)
    columns = {"map": np.array([IDS[0].numpy()] * 2, np.uint8)}
    assert cls.derive(Table(images, columns, preprocess, "k"), {})["classes"] == 3
    named = cls.derive(Table(images, columns, preprocess, "k", map_classes=tuple("abcd")), {})
    assert named == {"classes": 4, "names": list("abcd"), "size": [4, 4]}
    assert SemanticMap.derive_latent(Identity(3), {}) == {"factor": 1}


def test_wrong_maps_are_refused() -> None:
    part = SemanticMap(3, names=["sky", "sea", "sand"])
    assert torch.equal(part.parse([IDS[0], IDS[0].numpy()]), IDS.repeat(2, 1, 1))
    with pytest.raises(UserError, match=r"class 7; this model knows 0 to 2 \(sky, sea, sand\)"):
        part.parse([IDS[0] + 5])
    with pytest.raises(UserError, match="one class id for each pixel"):
        part.parse([torch.zeros(3, 4, 4)])
    with pytest.raises(UserError, match="Did you mean 'area'"):
        SemanticMap(3, resize="aera")
