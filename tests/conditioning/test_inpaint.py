"""Masks that are the sample's own, and the masked image as the network sees it."""

import numpy as np
import pytest
import torch

from ldm.common.errors import UserError
from ldm.conditioning import Inpaint
from ldm.data import Table
from ldm.images import Preprocess
from ldm.images.random_masks import boxes, random_masks, strokes
from ldm.networks import Identity


def halved(images: torch.Tensor) -> torch.Tensor:
    """A first stage of factor 2 that loses something: one channel, the mean."""
    return torch.nn.functional.avg_pool2d(images, 2).mean(1, keepdim=True)


def test_masks_are_a_function_of_seed_and_position() -> None:
    position = torch.arange(5000, 5064)
    whole = random_masks(3, position, (24, 32))
    assert whole.shape == (64, 1, 24, 32) and set(whole.unique().tolist()) == {0, 1}
    pieces = torch.cat([random_masks(3, piece, (24, 32)) for piece in position.split(7)])
    assert torch.equal(pieces, whole)
    assert not torch.equal(random_masks(4, position, (24, 32)), whole)


def test_masks_hide_a_part_and_now_and_then_everything() -> None:
    masks = random_masks(0, torch.arange(2000), (32, 32))
    share = masks.mean((1, 2, 3))
    assert 0.15 < share.mean() < 0.5 and share.min() > 0
    assert 0.02 < (share == 1).float().mean() < 0.09
    places = masks.mean((0, 1))
    assert places.min() > 0.05  # no place is never hidden


def test_boxes_are_boxes_and_strokes_hang_together() -> None:
    position = torch.arange(50)
    single = boxes(1, position, (40, 40)).float()
    filled = single.amax(2, keepdim=True) * single.amax(1, keepdim=True)
    assert (filled == single).flatten(1).all(1).float().mean() > 0.5  # the others are two boxes
    for mask in strokes(1, position, (40, 40)).numpy():
        assert _pieces(mask) == 1


def _pieces(mask: np.ndarray) -> int:
    left, count = {tuple(p) for p in np.argwhere(mask)}, 0
    while left:
        count, front = count + 1, [left.pop()]
        while front:
            y, x = front.pop()
            near = {(y + a, x + b) for a in (-1, 0, 1) for b in (-1, 0, 1)} & left
            left -= near
            front += near
    return count


def test_what_is_hidden_cannot_be_seen() -> None:
    part = Inpaint(1, factor=2, size=[8, 8])
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 3:8, 2:6] = 1
    images = torch.rand(2, 3, 8, 8)
    images[1] = torch.where(mask[0] == 1, torch.rand(3, 8, 8), images[0])  # another, but only where it is hidden
    values = part.prepare({"image": images, "mask": mask.expand(2, -1, -1, -1)}, halved, 0)
    assert values.shape == (2, part.concat_channels, 4, 4)
    assert torch.equal(values[0], values[1])
    assert values[0, 0, 1, 1] == 0.5 and (values[0, 1, 2:, 1:3] == 0).all()
    torch.testing.assert_close(values[0, 1, 0], halved(images)[0, 0, 0])


def test_null_is_a_mask_over_everything() -> None:
    part = Inpaint(1, factor=2, size=[8, 8])
    images = torch.rand(2, 3, 8, 8)
    everything = part.prepare({"image": images, "mask": torch.ones(2, 1, 8, 8)}, halved, 0)
    assert torch.equal(part.null_values(2), everything)
    some = part.prepare({"image": images, "position": torch.arange(2)}, halved, 0)
    cond = part(some, torch.tensor([True, False]))
    assert torch.equal(cond.concat[0], everything[0]) and torch.equal(cond.concat[1], some[1])


def test_masks_are_random_or_the_data_s() -> None:
    assert Inpaint(1).needs == ("image",) and Inpaint(1, masks="data").needs == ("image", "mask")
    images = torch.rand(4, 3, 8, 8)
    example = Inpaint(1).example({"image": images, "position": torch.arange(4)}, 5)
    assert torch.equal(example["mask"], random_masks(5, torch.arange(4), (8, 8)))
    with pytest.raises(UserError, match="Did you mean 'data'"):
        Inpaint(1, masks="dta")


def test_sizes_are_read_off_data_and_first_stage() -> None:
    table = Table(np.zeros((2, 3, 8, 6), np.uint8), {}, Preprocess(3, 8, 6), "k")
    derived = {**Inpaint.derive(table, {}), **Inpaint.derive_latent(Identity(3), {})}
    assert derived == {"size": [8, 6], "factor": 1, "latent_channels": 3}
    assert Inpaint(**derived).null_values(1).shape == (1, 4, 8, 6)


def test_in_stable_diffusions_layout_the_mask_is_each_first_pixel_and_what_is_hidden_is_grey() -> None:
    part = Inpaint(1, factor=2, size=[8, 8], layout="stable_diffusion", drop_prob=0.5)
    images, mask = torch.rand(2, 3, 8, 8), torch.zeros(2, 1, 8, 8)
    mask[..., 3:8, 2:6] = 1
    values = part.prepare({"image": images, "mask": mask}, lambda x: halved(x) + 5, 0)
    cond = part(values)
    assert cond.concat is not None and cond.concat.shape == (2, part.concat_channels, 4, 4)
    assert torch.equal(cond.concat[:, :1], mask[..., ::2, ::2])
    torch.testing.assert_close(cond.concat[:, 1:], halved(images * (1 - mask)) + 5)
    everything = part.prepare({k: v for k, v in part.null_inputs(2, None).items()}, lambda x: halved(x) + 5, 0)
    dropped = part(values, torch.tensor([True, False])).concat
    assert dropped is not None
    assert torch.equal(dropped[0], everything[0, :2]) and torch.equal(dropped[1], cond.concat[1])
    assert (everything[:, 0] == 1).all() and (everything[:, 1] == 5).all()
    with pytest.raises(UserError, match="layout=stable isn't a choice"):
        Inpaint(1, layout="stable")
