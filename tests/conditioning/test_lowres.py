"""Low resolution and its noise, as the network sees them."""

import numpy as np
import pytest
import torch

from ldm.common.errors import UserError
from ldm.conditioning import Conditioner, LowRes
from ldm.conditioning.lowres import smaller
from ldm.data import Table
from ldm.images import Preprocess
from ldm.networks import Identity


def same(images: torch.Tensor) -> torch.Tensor:
    return images


def batch(n: int = 4, side: int = 16) -> dict:
    images = torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return {"image": images, "position": torch.arange(n)}


@pytest.mark.parametrize(
    ("scale", "factor", "planes"), [(2, 1, 3), (2, 2, 3), (2, 4, 12), (4, 2, 3), (2, 8, 48), (3, 2, 12)]
)
def test_it_reaches_the_latent_s_resolution(scale: int, factor: int, planes: int) -> None:
    part = LowRes(3, scale=scale, factor=factor)
    values = part.prepare(batch(side=48), same, 0)
    cond = part(values)
    assert part.concat_channels == planes and cond.concat.shape == (4, planes, 48 // factor, 48 // factor)
    assert cond.vector.shape == (4, part.vector_dim)


def test_nothing_of_it_is_lost_where_the_latent_is_coarser() -> None:
    part = LowRes(3, scale=2, factor=4)
    low = smaller(batch()["image"], 2)
    values = part.prepare({"low_res": low, "noise_level": torch.zeros(4), "position": torch.arange(4)}, same, 0)
    torch.testing.assert_close(torch.nn.functional.pixel_shuffle(values[:, :-1], 2), low)


def test_encoded_goes_through_the_first_stage_at_full_size() -> None:
    seen = []
    part = LowRes(3, scale=2, factor=4, latent_channels=5, encoded=True)
    values = part.prepare(batch(), lambda x: (seen.append(x.shape), x.new_zeros(len(x), 5, 4, 4))[1], 0)
    assert seen == [(4, 3, 16, 16)] and part(values).concat.shape == (4, 5, 4, 4)


def test_noise_has_the_given_level_and_keeps_the_variance() -> None:
    part = LowRes(1, scale=2, max_level=0.6)
    position = torch.arange(400)
    images = torch.randn(400, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2  # means of 4 have std 1
    values = part.prepare({"image": images, "position": position}, same, 0)
    level = values[:, -1, 0, 0]
    assert 0 < level.min() < 0.02 and 0.58 < level.max() < 0.6
    low = torch.nn.functional.interpolate(smaller(images, 2), scale_factor=2, mode="bicubic")
    wrong = (values[:, 0] - (1 - level**2).sqrt()[:, None, None] * low[:, 0]).std((1, 2))
    assert torch.corrcoef(torch.stack([wrong, level]))[0, 1] > 0.98  # the noise grows with the given level
    nothing = part.prepare(
        {"low_res": smaller(images, 2), "noise_level": torch.ones(400), "position": position}, same, 0
    )
    assert abs(torch.corrcoef(torch.stack([nothing[:, 0].flatten(), low.flatten()]))[0, 1]) < 0.02


def test_noise_is_a_function_of_seed_and_position() -> None:
    part, whole = LowRes(3), batch(8)
    values = part.prepare(whole, same, 1)
    half = {key: tensor[4:] for key, tensor in whole.items()}
    assert torch.equal(part.prepare(half, same, 1), values[4:])
    assert not torch.equal(part.prepare(whole, same, 2), values)


def test_sampling_adds_a_fixed_level() -> None:
    part = LowRes(3, level=0.1)
    given = {"low_res": torch.zeros(2, 3, 8, 8), "position": torch.tensor([5, 6])}
    assert part.prepare(given, same, 0)[:, -1].unique().tolist() == pytest.approx([0.1])
    given["noise_level"] = part.parse([0.25, 0.5])
    assert part.prepare(given, same, 0)[:, -1, 0, 0].tolist() == [0.25, 0.5]
    with pytest.raises(UserError, match="noise_level"):
        part.parse([2.0])


def test_null_is_what_is_dropped() -> None:
    part = LowRes(3, scale=2, factor=2, size=[16, 16])
    values = part.prepare(batch(2), same, 0)
    dropped, null = part(values, torch.tensor([True, False])), part(part.null_values(1))
    assert torch.equal(dropped.concat[:1], null.concat)
    torch.testing.assert_close(dropped.vector[:1], null.vector)
    assert torch.equal(dropped.concat[1], part(values).concat[1])


def test_mistakes_are_answered_in_words() -> None:
    table = Table(np.zeros((2, 3, 9, 8), np.uint8), {}, Preprocess(3, 9, 8), "k")
    with pytest.raises(UserError, match="can't be reduced by 2"):
        LowRes.derive(table, {})
    assert LowRes.derive_latent(Identity(3), {}) == {"factor": 1, "latent_channels": 3}
    for wrong in ({"scale": 1}, {"level": 0.5, "max_level": 0.2}, {"encoded": True}):
        with pytest.raises(UserError, match="conditioner"):
            LowRes(3, **wrong)


def test_the_difference_is_diffused_where_it_lies_in_the_network_s_space() -> None:
    on_pixels, on_latents = LowRes(3, latent_channels=3), LowRes(3, factor=4, latent_channels=3)
    values = on_pixels.prepare(batch(), same, 0)
    assert torch.equal(on_pixels(values).base, values[:, :-1])
    assert (on_pixels(on_pixels.null_sized(1, (16, 16))).base == 0).all()
    assert on_latents(on_latents.prepare(batch(), same, 0)).base is None
    assert LowRes(3, latent_channels=3, residual=False)(values).base is None
    assert Conditioner({"low": on_pixels})({"low": values}).base is not None


def test_what_a_user_passes_is_by_another_name_than_the_data_s() -> None:
    conditioner = Conditioner({"low": LowRes(3)})
    assert conditioner.needs == ("image",) and conditioner.inputs == ("low_res", "noise_level")
    given = conditioner.examples({"image": torch.zeros(3, 3, 8, 8)})
    assert [t.shape for t in given["low_res"]] == [(3, 4, 4)] * 3
