"""Image to image and inpainting, with a small random model whose autoencoder loses something."""

import io
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.common.errors import UserError
from ldm.conditioning import Conditioner
from ldm.diffusion import EDM, Denoiser
from ldm.images import Preprocess
from ldm.model.inputs import read_images, read_maps, read_masks
from ldm.model.latent_diffusion import LatentDiffusion
from ldm.networks import AutoencoderKL, UNet


@pytest.fixture(scope="module")
def model() -> LatentDiffusion:
    torch.manual_seed(0)
    network = UNet(2, channels=8, multipliers=(1,), heads=2)
    torch.nn.init.normal_(network.conv_out.weight, std=0.1)
    vae = AutoencoderKL(3, 2, channels=8, multipliers=(1, 2))
    preprocess = Preprocess(channels=3, height=8, width=8)
    return LatentDiffusion(vae, Denoiser(network, EDM()), Conditioner(), preprocess, {"steps": 5}).eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_given_images_masks_and_maps_have_finite_values(bad: float) -> None:
    preprocess, values = Preprocess(3, 4, 4), np.zeros((4, 4), np.float32)
    values[0, 0] = bad
    tensor = torch.from_numpy(values)
    for read, given, message in (
        (read_images, tensor.expand(3, 4, 4), "and no NaN"),
        (read_masks, tensor, "a mask has infinite values or NaN"),
        (read_masks, values, "holds values that are not numbers"),
        (read_masks, Image.fromarray(values), "holds values that are not numbers"),
        (read_maps, tensor, "aren't class ids|a map has infinite values"),
        (read_maps, values, "aren't class ids|a map has infinite values"),
    ):
        with pytest.raises(UserError, match=message):
            read(given, preprocess)
    with pytest.raises(UserError, match="aren't class ids: give whole numbers"):
        read_maps(np.full((4, 4), 0.5), preprocess)
    assert read_maps(torch.ones(4, 4, dtype=torch.bfloat16), preprocess)[0].unique().tolist() == [1]


def test_strength_0_is_the_reconstruction(model: LatentDiffusion, images: torch.Tensor) -> None:
    wanted = model.decode(model.encode(images))
    torch.testing.assert_close(model(n=2, image=images, strength=0, output="pt"), wanted)


def test_strength_1_ignores_the_image(model: LatentDiffusion, images: torch.Tensor) -> None:
    plain = model(n=2, output="pt")
    torch.testing.assert_close(model(n=2, image=images, strength=1, output="pt"), plain)


def test_the_image_is_left_further_behind_with_more_strength(model: LatentDiffusion, images: torch.Tensor) -> None:
    base = model(n=2, image=images, strength=0, output="pt")
    change = [(model(n=2, image=images, strength=s, output="pt") - base).square().mean().item() for s in (0.2, 0.6, 1)]
    assert 0 < change[0] < change[1] < change[2]


@pytest.mark.parametrize(("steps", "strengths"), [(20, (0.78, 0.79, 0.8, 0.81, 0.82)), (1, (0.1, 0.2, 0.3, 0.4))])
def test_every_strength_begins_at_its_own_noise(model: LatentDiffusion, images: torch.Tensor, steps, strengths) -> None:
    results = [model(n=2, image=images, strength=s, steps=steps, output="pt") for s in (0, *strengths)]
    changes = [(b - a).abs().max().item() for a, b in itertools.pairwise(results)]
    assert min(changes) > 1e-3


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m_sde"])
def test_known_pixels_come_back_exactly(model: LatentDiffusion, images: torch.Tensor, sampler: str) -> None:
    mask = torch.zeros(8, 8)
    mask[2:5, 3:7] = 1
    out = model(n=2, image=images, mask=mask, sampler=sampler, output="pt")
    kept = mask[None, None].expand_as(out) == 0
    assert torch.equal(out[kept], images[kept])
    assert not torch.allclose(out[~kept], images[~kept], atol=0.1)


def test_a_feathered_edge_still_keeps_what_lies_outside(model: LatentDiffusion, images: torch.Tensor) -> None:
    mask = torch.zeros(8, 8)
    mask[2:7, 2:7] = 1
    hard, soft = (model(n=2, image=images, mask=mask, feather=f, output="pt") for f in (0, 1))
    kept = mask[None, None].expand_as(soft) == 0
    assert torch.equal(soft[kept], images[kept])
    centre = (slice(None), slice(None), slice(4, 5), slice(4, 5))
    torch.testing.assert_close(soft[centre], hard[centre])
    assert not torch.allclose(soft[:, :, 2], hard[:, :, 2])


def test_images_and_masks_are_read(model: LatentDiffusion, tmp_path: Any) -> None:
    shown_image = Image.fromarray(np.full((16, 16, 3), 200, np.uint8))
    mask = Image.fromarray(np.pad(np.full((8, 16), 255, np.uint8), ((0, 8), (0, 0))))
    shown_image.save(tmp_path / "p.png")
    mask.save(tmp_path / "m.png")
    given = model(image=shown_image, mask=mask, output="np")
    read = model(image=str(tmp_path / "p.png"), mask=str(tmp_path / "m.png"), output="np")
    assert np.array_equal(given, read)
    assert (given[0, 4:] == 200).all() and not (given[0, :4] == 200).all()


def on_its_side(shown_image: Image.Image) -> Image.Image:
    """The image as a camera stores it: lying, with a tag that says how to turn it upright."""
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    file = io.BytesIO()
    shown_image.transpose(Image.Transpose.ROTATE_90).save(file, "PNG", exif=exif)
    return Image.open(file)


def test_an_image_is_turned_as_its_exif_says_whatever_it_is(model: LatentDiffusion, tmp_path: Any) -> None:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    mask = Image.fromarray(np.pad(np.full((3, 8), 255, np.uint8), ((0, 5), (0, 0))))
    lying, lying_mask = on_its_side(image), on_its_side(mask)
    wanted = read_images(image, model.preprocess)
    for given in (lying, lying.convert("RGB"), [lying]):
        assert torch.equal(read_images(given, model.preprocess), wanted)
    assert torch.equal(read_masks(lying_mask, model.preprocess), read_masks(mask, model.preprocess))
    ids = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    assert torch.equal(read_maps(on_its_side(ids), model.preprocess)[0], torch.arange(64).view(8, 8))
    given = model(image=lying, mask=lying_mask, output="pt")
    assert torch.equal(given, model(image=image, mask=mask, output="pt"))
    between = model.interpolate(lying, lying, n=2, output="pt")
    assert torch.equal(between, model.interpolate(image, image, n=2, output="pt"))


def test_what_lies_over_each_other_must_have_one_aspect(model: LatentDiffusion, tmp_path: Any) -> None:
    wide, tall = Image.new("RGB", (20, 10)), Image.new("L", (10, 20), 255)
    wide.save(tmp_path / "wide.png")
    with pytest.raises(UserError, match="the image is 10x20, the mask 20x10 .height x width."):
        model(image=tmp_path / "wide.png", mask=tall)
    model(image=wide, mask=Image.new("L", (40, 20), 255), steps=1)
    with pytest.raises(UserError, match="isn't an image: give a file"):
        model(image=3, steps=1)


def test_a_profile_that_cannot_be_read_is_reported(model: LatentDiffusion, caplog: Any) -> None:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG", icc_profile=b"junk" * 40)
    read_images([file.getvalue()], model.preprocess)
    assert "an image that you gave: colour profile is broken; read as sRGB" in caplog.text


def test_a_mask_may_be_an_array_of_any_kind(model: LatentDiffusion, images: torch.Tensor) -> None:
    size = tuple(images.shape[2:])
    grey = np.zeros(size, np.uint8)
    grey[: size[0] // 2] = 255
    wanted = read_masks(grey, model.preprocess)
    assert wanted.mean() == 0.5
    for same in (grey // 255 + 1, grey > 0, grey / 255.0, np.stack([grey] * 3, 2), np.stack([grey] * 3, 2) // 255):
        assert torch.equal(read_masks(same, model.preprocess), wanted)
    with pytest.raises(UserError, match="isn't an image"):
        read_masks(np.zeros((2, *size)), model.preprocess)


def test_an_empty_mask_is_reported_where_it_is_given(model: LatentDiffusion, caplog: Any) -> None:
    assert not read_masks(Image.new("L", (8, 8)), model.preprocess).any()
    assert "a mask that you gave: is entirely black: nothing is masked" in caplog.text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"strength": 0.5}, "need an image"),
        ({"image": torch.zeros(3, 8, 8), "strength": 2}, "has to lie between"),
        ({"image": torch.zeros(3, 8, 8), "mask": torch.zeros(4, 4)}, "give both the same size"),
        ({"image": torch.zeros(2, 3, 8, 8), "n": 3}, "2 images for 3 to generate"),
    ],
)
def test_mistakes_are_answered_in_words(model: LatentDiffusion, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        model(**options)


def test_an_image_is_brought_to_the_size_that_is_requested(model: LatentDiffusion) -> None:
    photo = np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8)
    mask = np.zeros((16, 12), np.uint8)
    mask[:, :6] = 255
    out = model(n=1, image=photo, strength=0, size=(16, 12), output="pt")
    assert out.shape == (1, 3, 16, 12)
    large = Image.fromarray(photo).resize((12, 16))
    filled = model(n=1, image=large, mask=mask, size=(16, 12), output="np")
    assert np.array_equal(filled[0, :, 6:], np.asarray(large)[:, 6:]), "kept pixels at that size"
    with pytest.raises(UserError, match="leave size out"):
        model(n=1, image=torch.zeros(1, 3, 8, 8), size=16)
    with pytest.raises(UserError, match="factor"):
        model(n=1, image=photo, size=15)
