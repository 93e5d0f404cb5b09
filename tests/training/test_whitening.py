"""Latents by channel to mean 0 and std 1, or by LDM's one factor."""

import pytest
import torch

import ldm
from ldm.common.errors import UserError
from ldm.training.ldm_run import precheck
from ldm.training.whitening import WHITENING, file_whitening


def test_one_scale_is_the_std_of_all_latents() -> None:
    latents = torch.randn(4000, 3, 2, 2, dtype=torch.float64) * torch.tensor([1.0, 2.0, 5.0])[:, None, None]
    latents += torch.tensor([0.0, 3.0, -2.0])[:, None, None]
    over = (0, 2, 3)
    mean, std = WHITENING["scalar"](latents.mean(over), latents.std(over, correction=0))
    assert mean.tolist() == [0, 0, 0]
    assert std.tolist() == pytest.approx([float(latents.std())] * 3, rel=1e-3)


def test_an_unknown_whitening_is_refused_before_any_work() -> None:
    with pytest.raises(UserError, match="Did you mean 'scalar'"):
        precheck({"whitening": "scalr", "first_stage": "identity"})


def test_a_file_of_diffusers_says_shift_and_scale() -> None:
    vae = ldm.AutoencoderKL(1, 2, channels=8)
    with pytest.raises(UserError, match="whitening=file: only a diffusers folder declares its whitening"):
        file_whitening(vae)
    vae.scaling = ([0.25, 0.25], [2.0, 2.0])
    assert [part.tolist() for part in file_whitening(vae)] == [[0.25, 0.25], [2.0, 2.0]]
