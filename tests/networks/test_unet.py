"""The U-Net: parity with diffusers on copied weights, odd sizes, a start at zero, and what its arguments refuse."""

import pytest
import torch
import torch.nn.functional as F

from ldm.common.errors import UserError
from ldm.networks import Cond, UNet

SD_LIKE = {"in_channels": 4, "channels": [32, 64], "blocks": 2, "context_dim": 24, "scale_shift": False, "groups": 8}
CASES = {
    "convolutions for projection": {"linear_projection": False},
    "linear projection": {"linear_projection": True},
    "scale and shift": {"scale_shift": True},
    "attention, depth and heads by level": {
        "channels": [16, 32, 48],
        "blocks": 1,
        "attention": [False, True, True],
        "depth": [1, 2, 3],
        "heads": [2, 4, 8],
    },
    "attention in the middle alone": {"attention": False, "channels": [16, 32, 32]},
    "vector condition": {"vector_dim": 12, "blocks": 1},
    "one level, other channels out": {"channels": [32], "out_channels": 3},
}


def theirs(options: dict):
    """diffusers' U-Net of these options of ours, with random weights, those of the norms too."""
    from diffusers import UNet2DConditionModel

    def by_level(name, default):
        value = options.get(name, default)
        return list(value) if isinstance(value, list) else [value] * len(options["channels"])

    attends = by_level("attention", True)
    model = UNet2DConditionModel(
        in_channels=options["in_channels"],
        out_channels=options.get("out_channels", options["in_channels"]),
        block_out_channels=options["channels"],
        down_block_types=["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends],
        up_block_types=["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in attends[::-1]],
        layers_per_block=options["blocks"],
        norm_num_groups=options["groups"],
        cross_attention_dim=options["context_dim"],
        attention_head_dim=by_level("heads", 4),  # the number of heads, by legacy
        transformer_layers_per_block=by_level("depth", 1),
        use_linear_projection=options.get("linear_projection", True),
        resnet_time_scale_shift="scale_shift" if options["scale_shift"] else "default",
        class_embed_type="simple_projection" if options.get("vector_dim") else None,
        projection_class_embeddings_input_dim=options.get("vector_dim"),
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def pair(**case):
    options = SD_LIKE | case
    torch.manual_seed(0)
    reference, ours = theirs(options), UNet(**options).eval()
    ours.load_state_dict(reference.state_dict(), strict=True)  # the names are the same
    return ours, reference


def inputs(side: tuple[int, int], vector_dim: int | None = None):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 4, *side, generator=generator)
    t = torch.tensor([3.25, 871.5])
    tokens = torch.randn(2, 5, 24, generator=generator)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]).bool()
    vector = torch.randn(2, vector_dim, generator=generator) if vector_dim else None
    return x, t, Cond(tokens=tokens, mask=mask, vector=vector)


@torch.no_grad()
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_parity_with_diffusers(case):
    ours, reference = pair(**case)
    for side in ((8, 8), (7, 7), (5, 12)):
        x, t, cond = inputs(side, case.get("vector_dim"))
        wanted = reference(x, t, cond.tokens, class_labels=cond.vector, encoder_attention_mask=cond.mask).sample
        assert wanted.std() > 0.1  # something to compare
        torch.testing.assert_close(ours(x, t, cond), wanted, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_residuals_of_a_controlnet_are_added_as_diffusers_adds_them():
    ours, reference = pair(blocks=1)
    x, t, cond = inputs((7, 7))
    _, skips = ours.encode(x, ours.embed(t, cond), cond)
    residuals = [torch.randn_like(s) for s in skips]
    middle = torch.randn_like(skips[-1])
    wanted = reference(
        x,
        t,
        cond.tokens,
        encoder_attention_mask=cond.mask,
        down_block_additional_residuals=tuple(residuals),
        mid_block_additional_residual=middle,
    ).sample
    torch.testing.assert_close(ours(x, t, cond, [*residuals, middle]), wanted, atol=1e-5, rtol=1e-5)
    zeros = [torch.zeros_like(r) for r in (*residuals, middle)]
    assert torch.equal(ours(x, t, cond, zeros), ours(x, t, cond))
    with pytest.raises(ValueError):
        ours(x, t, cond, [*residuals[:-1], middle])  # of a shallower network


@torch.no_grad()
def test_a_mask_hides_tokens_wholly():
    ours, _ = pair()
    x, t, cond = inputs((7, 7))
    spoilt = cond.tokens.clone()
    spoilt[1, 2:] = 1e4
    assert torch.equal(ours(x, t, cond), ours(x, t, Cond(tokens=spoilt, mask=cond.mask)))


@pytest.mark.parametrize("side", [(8, 8), (7, 7), (1, 3)])
def test_it_starts_at_zero_and_learns_from_there(side):
    network = UNet(3, channels=16, multipliers=(1, 2, 2), heads=2, context_dim=8, vector_dim=8, concat_channels=2)
    cond = Cond(torch.randn(2, 8), torch.randn(2, 4, 8), concat=torch.randn(2, 2, *side))
    out = network(torch.randn(2, 3, *side), torch.rand(2), cond)
    assert out.shape == (2, 3, *side)
    assert torch.equal(out, torch.zeros_like(out))
    (out - 1).square().mean().backward()
    assert network.conv_out.weight.grad.abs().sum() > 0


def test_every_block_starts_as_the_identity():
    network = UNet(4, channels=16, multipliers=(1, 2), heads=2)
    for name, module in network.named_modules():
        last = getattr(module, "conv2", None) or getattr(module, "proj_out", None)
        if last is not None:
            assert not last.weight.any() and not last.bias.any(), name


@torch.no_grad()
def test_concat_is_joined_to_the_latent():
    plain = UNet(5, 2, channels=[16], heads=2)
    joined = UNet(2, channels=[16], heads=2, concat_channels=3)
    for parameter in plain.parameters():
        parameter.normal_(std=0.1)
    joined.load_state_dict(plain.state_dict())
    x, t = torch.randn(1, 5, 6, 6), torch.tensor([0.3])
    assert torch.equal(joined(x[:, :2], t, Cond(concat=x[:, 2:])), plain(x, t))


def test_channels_may_be_a_width_a_level():
    shapes = [
        {name: p.shape for name, p in UNet(4, heads=2, groups=8, **options).named_parameters()}
        for options in ({"channels": 16, "multipliers": (1, 2.5)}, {"channels": [16, 40]})
    ]
    assert shapes[0] == shapes[1]


@torch.no_grad()
def test_patches_only_move_places_and_odd_sizes_are_filled():
    patched, plain = UNet(2, channels=[16, 16], heads=2, patch=2), UNet(8, channels=[16, 16], heads=2)
    for parameter in plain.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    patched.load_state_dict(plain.state_dict())
    x, t = torch.randn(2, 2, 7, 5), torch.tensor([0.3, 7.0])
    wanted = F.pixel_shuffle(plain(F.pixel_unshuffle(F.pad(x, (0, 1, 0, 1)), 2), t), 2)
    assert wanted.std() > 0.01
    torch.testing.assert_close(patched(x, t), wanted[:, :, :7, :5])


@torch.no_grad()
def test_an_odd_base_width_works():
    network = UNet(2, channels=[9], heads=3)
    torch.nn.init.ones_(network.conv_out.weight)
    assert network(torch.randn(1, 2, 4, 4), torch.tensor([5.0])).isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention": [True]}, r"network.attention has 1 values for 2 levels"),
        ({"depth": [1, 1, 1]}, r"network.depth has 3 values for 2 levels"),
        ({"heads": [2, 2, 2]}, r"network.heads has 3 values for 2 levels"),
        ({"heads": 5}, r"16 channels can't be split into 16 groups and 5 heads"),
        ({"groups": 3}, r"3 groups"),
        ({"channels": [16, 24]}, r"24 channels can't be split into 16 groups"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        UNet(4, **({"channels": 16, "multipliers": (1, 2)} | options))
