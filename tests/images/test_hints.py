"""Control images: edges as kornia finds them, one pixel wide on clean steps; the other kinds; reading from files."""

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.common.errors import UserError
from ldm.common.registry import build, spec_of
from ldm.data.storage.table import Table
from ldm.images import Preprocess
from ldm.images.canny import canny, gradient
from ldm.images.hints import KINDS, Canny, Colour, ColumnHint, Grey, MapHint, MaskHint, hint_for


def smooth(n=2, channels=1, side=24):
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(n, channels, side // 4, side // 4, generator=generator) * 2 - 1
    return torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic").clamp(-1, 1)


def test_edges_are_kornias():
    filters = pytest.importorskip("kornia.filters")
    images = smooth()
    wanted = filters.canny((images + 1) / 2, 0.2, 0.5, hysteresis=True)[1]
    assert 0.02 < wanted.mean() < 0.5
    assert (canny(images, 0.2, 0.5) != wanted).float().mean() < 0.003  # equal neighbours and rounding


def test_a_clean_step_is_one_line_one_pixel_wide():
    images = torch.full((1, 1, 12, 12), -1.0)
    images[..., 5:] = 1.0
    for step in (images, images.transpose(2, 3)):
        edges = canny(step)[0, 0]
        edges = edges if step is images else edges.T
        assert edges.sum(1).tolist() == [1.0] * 12 and edges[:, 4:6].sum() == 12


def test_colours_of_equal_brightness_have_an_edge_between_them():
    images = torch.zeros(1, 3, 12, 12)
    images[:, 0, :, 6:], images[:, 1, :, 6:] = 0.299**-1 * 0.2, 0.587**-1 * -0.2
    assert canny(images).sum() == 12
    assert canny(images.mean(1, keepdim=True) * 0).sum() == 0


def test_weak_edges_stay_where_strong_ones_lead_to_them():
    images = torch.full((1, 1, 20, 40), -1.0)
    fading = torch.linspace(0.7, 0.1, 40)  # a step that becomes fainter
    images[:, :, 10:] = -1 + 2 * fading
    strong, weak = canny(images, 0.8, 0.8).sum(), canny(images, 0.5, 0.8).sum()
    assert 0 < strong < weak < canny(images, 0.2, 0.8).sum() <= 41
    assert canny(images * 0.2, 0.1, 0.8).sum() == 0  # nothing strong, nothing at all


def test_gradient_is_sobels():
    columns = torch.arange(6.0).expand(1, 1, 6, 6)
    dx, dy = gradient(columns)
    assert torch.equal(dx[..., 1:-1], torch.full((1, 1, 6, 4), 8.0)) and not dy.any()


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 2, 2), (4, 5, 3)])
def test_edges_of_tiny_images(shape):
    assert canny(torch.rand(2, *shape)).shape == (2, 1, *shape[1:])


def table(**columns):
    images = np.random.default_rng(0).integers(0, 256, (4, 3, 8, 8)).astype(np.uint8)
    return Table(images, columns, Preprocess(3, 8, 8), "key", map_classes=("nothing", "cat", "dog"))


COLUMNS = {
    "map": np.random.default_rng(1).integers(0, 3, (4, 8, 8)).astype(np.uint8),
    "mask": np.full((4, 8, 8), 255, np.uint8),
    "control": np.full((4, 2, 8, 8), 51, np.uint8),
    "depth": np.full((4, 8, 8), 51, np.uint8),
    "label": np.arange(4),
}


@pytest.mark.parametrize("control", [*KINDS, "control", "depth"])
def test_every_kind_is_made_from_a_batch_and_remembered(control):
    data = table(**COLUMNS)
    hint = hint_for(control, data)
    made = hint(data.batch(np.arange(4), [hint.column])[hint.column])
    assert made.shape == (4, hint.channels, 8, 8) and made.dtype == torch.float32
    assert made.min() >= 0 and made.max() <= 1
    again = build(spec_of(hint))
    assert torch.equal(again(data.batch(np.arange(4), [hint.column])[hint.column]), made)
    shown = hint.show(made)
    assert shown.shape[1] in (1, 3) and shown.min() >= -1


def test_what_the_kinds_show():
    images = smooth(2, 3, 8)
    assert torch.equal(*Grey()(images)[:, :2].unbind(1))
    fields = Colour(2)(images)
    assert torch.allclose(fields[..., 0, 0], (images[..., :4, :4].mean((2, 3)) + 1) / 2)
    assert len(fields[0, 0].unique()) == 4
    ids = torch.tensor([[[0, 1], [2, 1]]])
    assert torch.equal(MapHint(3)(ids).argmax(1), ids)
    colours = MapHint(3, coloured=True)(ids)[0].flatten(1).T
    assert len(colours.unique(dim=0)) == 3 and not colours[0].any()
    assert torch.equal(MaskHint()(torch.ones(1, 1, 2, 2)), torch.ones(1, 3, 2, 2))
    assert torch.allclose(ColumnHint("depth", 1)(torch.full((1, 2, 2), 51)), torch.tensor(0.2))
    assert len(MapHint(60)._palette(torch.device("cpu")).unique(dim=0)) == 60


def test_control_images_are_read_from_files_as_they_were_made(tmp_path):
    preprocess = Preprocess(3, 8, 8)
    edges = Canny()(smooth(1, 3, 8))[0]
    Image.fromarray((edges * 255).byte().movedim(0, 2).numpy()).save(tmp_path / "edges.png")
    assert torch.equal(Canny().read(tmp_path / "edges.png", preprocess), edges)
    ids = torch.from_numpy(COLUMNS["map"][:1].astype(np.int64))
    Image.fromarray(COLUMNS["map"][0]).save(tmp_path / "map.png")
    for hint in (MapHint(3), MapHint(3, coloured=True)):
        for given in (tmp_path / "map.png", Image.open(tmp_path / "map.png"), COLUMNS["map"][0]):
            assert torch.equal(hint.read(given, preprocess), hint(ids)[0])
    coloured = (MapHint(3, coloured=True)(ids)[0] * 255).round().byte().movedim(0, 2).numpy()
    read = MapHint(3, coloured=True).read(Image.fromarray(coloured), preprocess)
    torch.testing.assert_close(read, MapHint(3, coloured=True)(ids)[0], atol=1 / 255, rtol=0)
    assert ColumnHint("depth", 1).read(tmp_path / "edges.png", preprocess).shape == (1, 8, 8)


def test_mistakes_are_named():
    data = table(label=COLUMNS["label"])
    with pytest.raises(UserError, match="Did you mean 'canny'"):
        hint_for("cany", data)
    with pytest.raises(UserError, match="the column 'map', which the data don't have"):
        hint_for("map", data)
    with pytest.raises(UserError, match="doesn't hold images"):
        hint_for("label", data)
    with pytest.raises(UserError, match="finetune.options.sigmaa"):
        hint_for("canny", data, {"sigmaa": 2})
    with pytest.raises(UserError, match="low=0.5"):
        Canny(0.5, 0.2)
    with pytest.raises(UserError, match="id 3"):
        MapHint(3)(torch.tensor([[[3]]]))
    with pytest.raises(UserError, match="2 channels"):
        ColumnHint("control", 2).read(np.zeros((8, 8, 3), np.uint8), Preprocess(3, 8, 8))
