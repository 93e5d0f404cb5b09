"""The features of timesteps."""

import pytest
import torch

from ldm.networks.layers import timestep_embedding


@pytest.mark.parametrize("dim", [2, 9, 64])
def test_timesteps_are_embedded_as_diffusers_does(dim):
    from diffusers.models.embeddings import get_timestep_embedding

    t = torch.tensor([0.0, 0.37, 999.0])
    wanted = get_timestep_embedding(t, dim, flip_sin_to_cos=True, downscale_freq_shift=0)
    torch.testing.assert_close(timestep_embedding(t, dim), wanted, atol=1e-6, rtol=1e-6)
