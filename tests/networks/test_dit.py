"""The Transformer denoiser: positions, a block by its formula, any size, a start at zero, the U-Net's interface."""

import pytest
import torch
import torch.nn.functional as F

import ldm
from ldm.common.errors import UserError
from ldm.networks import Cond, DiT, UNet
from ldm.networks.dit import DiTBlock, positions

OPTIONS = {"in_channels": 4, "channels": 32, "depth": 2, "heads": 2, "context_dim": 24, "vector_dim": 12}


def network(**options) -> DiT:
    """With random weights everywhere: at its start the network gives 0."""
    torch.manual_seed(0)
    dit = DiT(**{**OPTIONS, **options}).eval()
    with torch.no_grad():
        for parameter in dit.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return dit


def inputs(size=(4, 4)):
    generator = torch.Generator().manual_seed(1)
    x, tokens = torch.randn(2, 4, *size, generator=generator), torch.randn(2, 5, 24, generator=generator)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]).bool()
    return x, torch.tensor([-0.3, 1.1]), Cond(torch.randn(2, 12, generator=generator), tokens, mask)


def test_positions_are_diffusers():
    embeddings = pytest.importorskip("diffusers.models.embeddings")
    wanted = embeddings.get_2d_sincos_pos_embed(24, 5, base_size=5, output_type="pt")
    torch.testing.assert_close(positions(5, 5, 24), wanted.float(), rtol=0, atol=1e-5)
    assert torch.equal(positions(3, 5, 24), positions(5, 5, 24)[:15])  # whatever the size, a place keeps its own


@torch.no_grad()
def test_a_block_is_the_papers():
    torch.manual_seed(0)
    block = DiTBlock(8, 2, 6, 2, 0.0).eval()
    for parameter in block.parameters():
        parameter.copy_(torch.randn_like(parameter) * 0.3)
    x, e, context = torch.randn(2, 5, 8), torch.randn(2, 8), torch.randn(2, 3, 6)
    shift1, scale1, gate1, shift2, scale2, gate2 = (e @ block.modulation.weight.T + block.modulation.bias).split(8, 1)

    def attention(layer, q, kv):
        q, k, v = (t.view(2, -1, 2, 4).transpose(1, 2) for t in (layer.to_q(q), layer.to_k(kv), layer.to_v(kv)))
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, 5, 8)
        return layer.to_out[0](out)

    h = F.layer_norm(x, (8,), eps=1e-6) * (1 + scale1[:, None]) + shift1[:, None]
    y = x + gate1[:, None] * attention(block.attn1, h, h)
    y = y + attention(block.attn2, F.layer_norm(y, (8,), block.norm2.weight, block.norm2.bias, 1e-6), context)
    h = F.layer_norm(y, (8,), eps=1e-6) * (1 + scale2[:, None]) + shift2[:, None]
    torch.testing.assert_close(block(x, e, context, None), y + gate2[:, None] * block.ff(h))


@torch.no_grad()
def test_it_starts_at_zero_with_blocks_that_are_the_identity():
    dit = DiT(**OPTIONS)
    x, c_noise, cond = inputs()
    assert not dit(x, c_noise, cond).any()
    h = torch.randn(2, 16, 32)
    assert torch.equal(dit.blocks[0](h, dit.embed(c_noise, cond), cond.tokens, cond.mask), h)


@torch.no_grad()
@pytest.mark.parametrize("patch", [1, 2, 3])
@pytest.mark.parametrize("size", [(4, 4), (5, 7), (1, 1), (2, 9)])
def test_any_size_and_patch(patch, size):
    dit = network(patch=patch, out_channels=3)
    x, c_noise, cond = inputs(size)
    out = dit(x, c_noise, cond)
    assert out.shape == (2, 3, *size) and out.isfinite().all() and out.std() > 0.01
    torch.testing.assert_close(out[1:], dit(x[1:], c_noise[1:], cond.map(lambda t: t[1:])), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_every_condition_matters_except_what_is_masked():
    dit = network(concat_channels=2, patch=2)
    x, c_noise, cond = inputs()
    cond = Cond(cond.vector, cond.tokens, cond.mask, concat=torch.randn(2, 2, 4, 4))
    out = dit(x, c_noise, cond)
    assert not torch.allclose(dit(x, c_noise + 0.5, cond), out, atol=1e-3)
    for name in ("vector", "tokens", "concat"):
        changed = Cond(**{**vars(cond), name: getattr(cond, name) + 1})
        assert not torch.allclose(dit(x, c_noise, changed), out, atol=1e-3), name
    tokens = torch.where(cond.mask[..., None], cond.tokens, 99.0)
    torch.testing.assert_close(dit(x, c_noise, Cond(cond.vector, tokens, cond.mask, cond.concat)), out)
    rolled = dit(x.roll(1, 3), c_noise, Cond(cond.vector, cond.tokens, cond.mask, cond.concat.roll(1, 3))).roll(-1, 3)
    assert not torch.allclose(rolled, out, atol=1e-3)  # it knows where it is


def test_it_stands_behind_the_u_nets_interface():
    dit, unet = network(concat_channels=2), UNet(4, channels=[32, 32], context_dim=24, vector_dim=12, concat_channels=2)
    for name in ("in_channels", "out_channels", "context_dim", "vector_dim", "concat_channels"):
        assert getattr(dit, name) == getattr(unet, name)
    again = ldm.build(ldm.spec_of(dit))
    again.load_state_dict(dit.state_dict())


def test_every_parameter_is_trained():
    dit = network(patch=2)
    dit(*inputs()).square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in dit.parameters())


@pytest.mark.parametrize(
    "wrong",
    [
        {"channels": 30},
        {"channels": [64, 128]},
        {"heads": 5},
        {"heads": 0},
        {"patch": 0},
        {"depth": 0},
        {"depth": 2.5},
        {"mlp": 0.5},
    ],
)
def test_what_is_refused(wrong):
    with pytest.raises(UserError, match="network"):
        DiT(**{**OPTIONS, **wrong})
