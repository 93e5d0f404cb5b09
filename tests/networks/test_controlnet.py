"""ControlNet: nothing at first, then everything that trains, and only that; hints of any factor; what doesn't fit."""

from copy import deepcopy

import pytest
import torch

from ldm.common.errors import UserError
from ldm.networks import Cond, Controlled, ControlNet, DiT, DiTControlNet, UNet, controlnet_for
from ldm.networks.controlnet import HintEncoder, primes

OPTIONS = {"channels": [8, 16], "heads": 2, "groups": 4, "context_dim": 6, "vector_dim": 5}
DIT_OPTIONS = {"channels": 8, "heads": 2, "depth": 3, "context_dim": 6, "vector_dim": 5}
BASES = [
    (UNet, OPTIONS),
    (UNet, OPTIONS | {"patch": 2}),
    (UNet, OPTIONS | {"attention": [False, True], "blocks": 2, "concat_channels": 2}),
    (DiT, DIT_OPTIONS),
    (DiT, DIT_OPTIONS | {"patch": 2, "concat_channels": 2}),
]


@pytest.fixture(params=BASES)
def base(request):
    torch.manual_seed(0)
    kind, options = request.param
    network = kind(3, **options)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network.requires_grad_(False)


def inputs(base, control=True, side=6, factor=2):
    generator = torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    hint = {"a": draw(2, 3, side * factor, side * factor)} if control else {}
    concat = draw(2, base.concat_channels, side, side) if base.concat_channels else None
    cond = Cond(draw(2, 5), draw(2, 4, 6), concat=concat, control=hint)
    return draw(2, 3, side, side), torch.tensor([0.3, 7.0]), cond


def controlled(base, factor=2):
    torch.manual_seed(2)
    network = Controlled(base)
    network.add("a", controlnet_for(base, 3, factor * base.patch))
    return network


def test_at_first_a_controlnet_changes_no_bit(base):
    x, t, cond = inputs(base)
    assert torch.equal(controlled(base)(x, t, cond), base(x, t, cond))


def test_two_steps_reach_everything_that_trains_and_nothing_else(base):
    network, frozen = controlled(base).train(), deepcopy(base.state_dict())
    x, t, cond = inputs(base)
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    assert set(trained) == {name for name, _ in network.named_parameters() if name.startswith("controlnets.")}
    optimizer = torch.optim.SGD(trained.values(), lr=0.1)
    reached = []
    for _ in range(2):
        optimizer.zero_grad()
        (network(x, t, cond) - 1).square().mean().backward()
        reached.append({name for name, p in trained.items() if p.grad is not None and p.grad.any()})
        optimizer.step()
    outputs = {n for n in trained if any(part in n for part in ("net_down_blocks", "net_mid_block", "net_blocks"))}
    assert reached[0] == outputs and reached[1] == set(trained)
    assert all(torch.equal(a, b) for a, b in zip(frozen.values(), base.state_dict().values(), strict=True))
    assert all(p.grad is None for p in base.parameters())


@torch.no_grad()
def test_it_copies_the_encoder_and_keeps_no_hold_of_the_base(base):
    net = controlnet_for(base, 3, 2)
    own, theirs = net.state_dict(), base.state_dict()
    shared = own.keys() & theirs.keys()
    left = (
        "up_blocks",
        "conv_norm_out",
        "conv_out",
        "blocks.2",
        "modulation_out",
        "linear_out",
    )  # of 3 blocks the last
    assert shared == {n for n in theirs if not n.startswith(left)}
    assert all(torch.equal(own[n], theirs[n]) and own[n].data_ptr() != theirs[n].data_ptr() for n in shared)
    assert not any(value is base for value in vars(net).values()) and isinstance(net._spec["network"], dict)


@torch.no_grad()
@pytest.mark.parametrize(("kind", "options"), [(UNet, OPTIONS), (DiT, DIT_OPTIONS)])
def test_several_add_up_and_weights_scale_each_output(kind, options):
    torch.manual_seed(0)
    base = kind(3, **options)
    network = controlled(base)
    network.add("b", controlnet_for(base, 3, 2))
    for parameter in network.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    x, t, cond = inputs(base)
    hints = {"a": cond.control["a"], "b": torch.rand_like(cond.control["a"])}
    plain = Cond(cond.vector, cond.tokens)
    residuals = [net(x, t, plain, hints[n]) for n, net in zip("ab", network.controlnets, strict=True)]
    n = network.controlnets[0].outputs
    weights = torch.rand(2, n)
    both = Cond(cond.vector, cond.tokens, control=hints, control_weights={"b": weights})
    summed = [
        a + torch.stack([w * part for w, part in zip(weights[:, i], b, strict=True)])
        for i, (a, b) in enumerate(zip(*residuals, strict=True))
    ]
    torch.testing.assert_close(network(x, t, both), base(x, t, plain, summed))
    assert torch.equal(network(x, t, plain), base(x, t, plain))  # no control image, no ControlNet


@pytest.mark.parametrize("factor", [1, 2, 4, 6, 8, 15, 32])
def test_hints_come_down_to_the_latents_size_by_any_factor(factor):
    base = UNet(2, channels=[8], heads=2)
    net = ControlNet(base, 1, factor)
    residuals = net(torch.randn(1, 2, 3, 5), torch.rand(1), Cond(), torch.rand(1, 1, 3 * factor, 5 * factor))
    assert residuals[0].shape == (1, 8, 3, 5)
    assert torch.tensor(primes(factor)).prod() == factor and len(net.hint_widths) == len(primes(factor)) + 1


@pytest.mark.parametrize(("channels", "factor"), [(25, 4), (3, 8), (1, 2)])
def test_a_control_image_is_heard_from_the_first_step(channels, factor):
    """PyTorch's own initialisation lets 1e-4 of a one-hot map through."""
    torch.manual_seed(0)
    net = HintEncoder(channels, 64, factor)
    one = torch.zeros(1, channels, 8 * factor, 8 * factor)
    other = one.clone()
    one[:, 0], other[:, -1, ::2] = 1, 1
    with torch.no_grad():
        assert 0.05 < (net(one) - net(other)).std() < 3


def test_a_factor_of_8_has_the_widths_of_stable_diffusion():
    assert ControlNet(UNet(2, channels=[8], heads=2)).hint_widths == [16, 32, 96, 256]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"channels": [8, 8]}, "levels"),
        ({"blocks": 2}, "levels"),
        ({"context_dim": 7}, "context_dim is 6"),
        ({"vector_dim": None}, "vector_dim is 5"),
    ],
)
def test_what_doesnt_fit_is_named(other, message):
    net = ControlNet(UNet(3, **OPTIONS))
    assert not net.misfits(UNet(3, **OPTIONS))
    assert message in "; ".join(net.misfits(UNet(3, **OPTIONS | other)))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"channels": 16}, "channels is 8"),
        ({"patch": 2}, "patch is 1"),
        ({"depth": 1}, "controls 2 blocks"),
        ({"concat_channels": 2}, "concat_channels is 0"),
        ({"vector_dim": None}, "vector_dim is 5"),
    ],
)
def test_what_doesnt_fit_a_dit_is_named(other, message):
    net = DiTControlNet(DiT(3, **DIT_OPTIONS))
    assert not net.misfits(DiT(3, **DIT_OPTIONS))
    assert message in "; ".join(net.misfits(DiT(3, **DIT_OPTIONS | other)))


@torch.no_grad()
def test_controlnets_of_different_depth_on_one_dit_add_up():
    torch.manual_seed(0)
    base = DiT(3, **DIT_OPTIONS)
    network = Controlled(base)
    for name, blocks in (("a", 3), ("b", 1)):
        network.add(name, DiTControlNet(base, factor=2, blocks=blocks))
    for parameter in network.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    x, t, cond = inputs(base)
    hints = {"a": cond.control["a"], "b": torch.rand_like(cond.control["a"])}
    deep, shallow = (net(x, t, cond, hints[n]) for n, net in zip("ab", network.controlnets, strict=True))
    summed = [deep[0] + shallow[0], *deep[1:]]
    both = Cond(cond.vector, cond.tokens, control=hints)
    torch.testing.assert_close(network(x, t, both), base(x, t, Cond(cond.vector, cond.tokens), summed))


def test_each_kind_copies_its_own_kind_of_network():
    unet, dit = UNet(3, **OPTIONS), DiT(3, **DIT_OPTIONS)
    assert "not a UNet" in ControlNet(unet).misfits(dit)[0] and "not a DiT" in DiTControlNet(dit).misfits(unet)[0]
    with pytest.raises(UserError, match="a DiT; the base's network is UNet"):
        DiTControlNet(unet)
    with pytest.raises(UserError, match="blocks=4: give 1 to"):
        DiTControlNet(dit, blocks=4)
    with pytest.raises(UserError, match="Linear"):
        controlnet_for(torch.nn.Linear(1, 1), 3, 2)


def test_only_a_unet_has_an_encoder_to_copy():
    with pytest.raises(UserError, match="Linear"):
        ControlNet(torch.nn.Linear(1, 1))
    with pytest.raises(UserError, match="takes 4 widths"):
        ControlNet(UNet(2, channels=[8], heads=2), hint_widths=[8, 8])
