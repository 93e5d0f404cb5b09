"""Muon by its own formula and torch's, what it is for, and that AdamW does the rest."""

import copy
import shutil
import sys

import pytest
import torch
from torch import nn

from ldm.common.errors import UserError
from ldm.networks import AutoencoderKL, DiT, UNet
from ldm.training.optimization.optimizers import (
    COEFFICIENTS,
    Muon,
    build_optimizer,
    check_name,
    groups_of,
    matrices,
    orthogonalised,
)
from ldm.training.runs.folder import DONE


@pytest.mark.parametrize("shape", [(6, 6), (4, 30), (50, 3)])
def test_newton_schulz_is_its_polynomial_of_the_singular_values(shape):
    torch.manual_seed(0)
    matrix = torch.randn(2, *shape, dtype=torch.float64)
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    s = s / s.norm(dim=1, keepdim=True)
    a, b, c = COEFFICIENTS
    for _ in range(5):
        s = a * s + b * s**3 + c * s**5
    torch.testing.assert_close(orthogonalised(matrix), u * s[:, None] @ vh, rtol=0, atol=1e-5)
    assert s.min() > 0.3 and s.max() < 1.3


def test_the_step_of_a_matrix_is_torchs():
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("torch has its own Muon since 2.9")
    torch.manual_seed(0)
    ours = nn.Parameter(torch.randn(12, 20))
    theirs = nn.Parameter(ours.detach().clone())
    options = {"lr": 0.02, "weight_decay": 0.1}
    optimizers = [
        Muon([{"params": [ours], "matrix": True}], betas=(0.9, 0.99), **options),
        torch.optim.Muon([theirs], momentum=0.95, adjust_lr_fn="match_rms_adamw", **options),
    ]
    start = ours.detach().clone()
    for _ in range(4):
        ours.grad = torch.randn(12, 20)
        theirs.grad = ours.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    moved = (theirs - start).norm()
    assert moved > 0.1
    assert (ours - theirs).norm() < 0.02 * moved  # theirs computes in bfloat16


def test_convolutions_are_matrices_and_a_step_has_adamws_size():
    torch.manual_seed(0)
    conv = nn.Parameter(torch.zeros(8, 4, 3, 3).to(memory_format=torch.channels_last))
    flat = nn.Parameter(torch.zeros(8, 36))
    optimizer = Muon([{"params": [conv, flat], "matrix": True}], lr=0.1, weight_decay=0.0)
    conv.grad = torch.randn(8, 4, 3, 3).to(memory_format=torch.channels_last)
    flat.grad = conv.grad.flatten(1).clone()
    optimizer.step()
    torch.testing.assert_close(conv.flatten(1), flat)
    assert (flat / 0.1).square().mean().sqrt().item() == pytest.approx(0.2, rel=0.2)


def test_the_rest_is_adamws_bit_for_bit():
    torch.manual_seed(0)
    linear = nn.Linear(5, 5)
    other = copy.deepcopy(linear)
    options = {"lr": 0.01, "betas": (0.8, 0.9), "weight_decay": 0.1}
    muon = Muon([{"params": [linear.weight], "matrix": True}, {"params": [linear.bias]}], **options)
    adamw = torch.optim.AdamW([other.bias], **options)
    for _ in range(3):
        linear.weight.grad, linear.bias.grad = torch.randn(5, 5), torch.randn(5)
        other.bias.grad = linear.bias.grad.clone()
        muon.step()
        adamw.step()
    assert torch.equal(linear.bias, other.bias)
    assert not torch.equal(linear.weight, other.weight)


def test_it_continues_bit_for_bit_from_its_state():
    torch.manual_seed(0)
    first = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    gradients = [[torch.randn_like(p) for p in first.parameters()] for _ in range(4)]

    def make(network):
        return build_optimizer("muon", groups_of("muon", network), 0.01, (0.9, 0.99), 0.1)

    def run(network, optimizer, some):
        for step in some:
            for parameter, gradient in zip(network.parameters(), step, strict=True):
                parameter.grad = gradient.clone()
            optimizer.step()

    optimizer = make(first)
    run(first, optimizer, gradients[:2])
    second = copy.deepcopy(first)
    resumed = make(second)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    run(first, optimizer, gradients[2:])
    run(second, resumed, gradients[2:])
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def made(name: str, network: nn.Module) -> torch.optim.Optimizer:
    return build_optimizer(name, groups_of(name, network), 0.01, (0.9, 0.99), 0.1)


def some_gradients(network: nn.Module, factor: float = 1.0) -> None:
    for parameter in network.parameters():
        parameter.grad = factor * torch.randn_like(parameter)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_step_with_found_inf_changes_nothing(name):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    optimizer = made(name, network)
    for found in (1.0, 0.0, 1.0):  # the first too, which makes the state
        some_gradients(network, float("nan") if found else 1.0)
        before, state = copy.deepcopy(network), copy.deepcopy(optimizer.state_dict()["state"])
        optimizer.found_inf = torch.tensor(found)
        optimizer.step()
        same = all(torch.equal(a, b) for a, b in zip(before.parameters(), network.parameters(), strict=True))
        assert same == bool(found) and all(p.isfinite().all() for p in network.parameters())
        if found and state:
            now = optimizer.state_dict()["state"]
            assert all(torch.equal(now[i][k], v) for i, own in state.items() for k, v in own.items())


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_found_inf_of_0_is_no_other_step(name):
    torch.manual_seed(0)
    networks = [nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))]
    networks.append(copy.deepcopy(networks[0]))
    optimizers = [made(name, network) for network in networks]
    optimizers[0].found_inf = torch.tensor(0.0)
    for seed in range(3):
        for network, optimizer in zip(networks, optimizers, strict=True):
            torch.manual_seed(seed)
            some_gradients(network)
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(*(n.parameters() for n in networks), strict=True))


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_scaler_alone_may_drive_it(name):
    """Without `unscale_`: then the optimizer divides by the scale itself."""
    torch.manual_seed(0)
    networks = [nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))]
    networks.append(copy.deepcopy(networks[0]))
    plain, scaled = (made(name, network) for network in networks)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    x = torch.randn(8, 4)
    for _ in range(3):
        for network, optimizer in zip(networks, (plain, scaled), strict=True):
            optimizer.zero_grad()
            loss = network(x).square().mean()
            (loss if optimizer is plain else scaler.scale(loss)).backward()
        plain.step()
        scaler.step(scaled)
        scaler.update()
    for a, b in zip(*(n.parameters() for n in networks), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_state_saved_before_it_was_fused_is_gone_on_with(name):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    optimizer = made(name, network)
    some_gradients(network)
    optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    for group in saved["param_groups"]:
        group |= {"fused": False, "foreach": True}
    resumed = made(name, network)
    resumed.load_state_dict(saved)
    resumed.found_inf = torch.tensor(0.0)  # which only fused kernels take
    some_gradients(network)
    resumed.step()
    assert {float(own["step"]) for own in resumed.state.values() if "exp_avg" in own} == {2.0}


def test_it_learns_what_adamw_learns():
    torch.manual_seed(0)
    x = torch.randn(256, 16)
    y = x @ torch.randn(16, 16)
    losses = {}
    for name in ("adamw", "muon"):
        torch.manual_seed(1)
        network = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
        optimizer = build_optimizer(name, groups_of(name, network), 0.1, (0.9, 0.99), 0.0)
        for step in range(150):
            optimizer.param_groups[0]["lr"] = optimizer.param_groups[-1]["lr"] = 0.1 * (1 - step / 150)
            loss = (network(x) - y).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses[name] = loss.item()
    assert losses["muon"] < 0.1 * y.square().mean().item()
    assert losses["adamw"] < 0.1 * y.square().mean().item()


@pytest.mark.parametrize(
    "network",
    [
        UNet(4, channels=[16, 32], context_dim=8, vector_dim=4),
        DiT(4, channels=16, depth=2, vector_dim=4, context_dim=8),
        AutoencoderKL(3, 4, channels=8, shortcut=True),
    ],
    ids=["unet", "dit", "vae"],
)
def test_first_and_last_layers_norms_and_biases_are_not_matrices(network):
    names = {id(p): name for name, p in network.named_parameters()}
    chosen = {names[id(p)] for p in matrices(network)}
    assert chosen and all(name.endswith(".weight") and "norm" not in name.split(".")[-2] for name in chosen)
    for part in ("class_embedding", "linear_out", "shortcut_in", "shortcut_out"):
        assert not any(part in name for name in chosen)
    assert not {"conv_in.weight", "conv_out.weight", "decoder.conv_out.weight", "encoder.conv_in.weight"} & chosen
    groups = groups_of("muon", network)
    assert [group["matrix"] for group in groups] == [True, False]
    assert sum(len(group["params"]) for group in groups) == len(names)
    assert len(groups_of("adamw", network)) == 1


def test_an_unknown_name_is_refused():
    with pytest.raises(UserError, match="Did you mean 'muon'"):
        build_optimizer("muom", [], 1.0, (0.9, 0.99), 0.0)


def test_a_state_that_was_laid_out_otherwise_in_memory_takes_the_same_step():
    """A sharded run saves contiguous states, and others train in channels_last."""
    steps = []
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        weight = nn.Parameter(torch.randn(4, 3, 3, 3).to(memory_format=torch.channels_last))
        optimizer = build_optimizer("adamw", [{"params": [weight]}], 0.1, (0.9, 0.99), 0.0)
        weight.grad = torch.randn_like(weight)
        optimizer.step()
        state = optimizer.state_dict()
        for name in ("exp_avg", "exp_avg_sq"):
            state["state"][0][name] = state["state"][0][name].contiguous(memory_format=layout)
        optimizer.load_state_dict(state)
        optimizer.step()
        steps.append(weight.detach().clone())
    assert torch.equal(*steps)


def test_adamw8bit_keeps_its_state_in_bytes_and_continues_bit_for_bit():
    pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    networks = [nn.Linear(128, 64)]
    networks.append(copy.deepcopy(networks[0]))
    start = networks[0].weight.detach().clone()
    options = (1e-2, (0.9, 0.99), 0.01)
    optimizer, other = (build_optimizer("adamw8bit", groups_of("adamw8bit", n), *options) for n in networks)
    plain = copy.deepcopy(networks[0])
    exact = build_optimizer("adamw", groups_of("adamw", plain), *options)

    def step(network, by):
        for parameter in network.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
        by.step()

    for _ in range(3):
        step(networks[0], optimizer)
        step(plain, exact)
    assert optimizer.state[networks[0].weight]["state1"].dtype == torch.uint8
    moved = (plain.weight - start).norm()
    assert (plain.weight - networks[0].weight).norm() < 0.05 * moved
    networks[1].load_state_dict(networks[0].state_dict())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    step(networks[0], optimizer)
    step(networks[1], other)
    assert torch.equal(networks[0].weight, networks[1].weight) and torch.equal(networks[0].bias, networks[1].bias)


def test_adamw8bit_without_its_package_is_a_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(UserError, match=r"pip install 'ldm\[adamw8bit\]'"):
        check_name("adamw8bit")


def tensors_in(state):
    """All of them at any depth: bitsandbytes saves those in bytes in a mapping of their own."""
    if isinstance(state, torch.Tensor):
        return [state]
    return [t for value in state.values() for t in tensors_in(value)] if isinstance(state, dict) else []


@pytest.mark.slow
def test_twenty_steps_of_adamw8bit_resume_bit_for_bit(runs, train):
    pytest.importorskip("bitsandbytes")
    words = ["optimizer.name=adamw8bit", "network.channels=[32,32]", "checkpoint.every_n_steps=10"]
    whole = train("ldm", runs, "name=eight", *words, "trainer.max_steps=20")
    cut = shutil.copytree(whole, whole.with_name("eightcut"))
    (cut / "checkpoints" / "step-00000020.ckpt").unlink()  # as if it had been stopped at step 10
    shutil.rmtree(cut / "model")
    (cut / DONE).unlink()
    train("ldm", runs, "name=eightcut", *words, "trainer.max_steps=20", "resume=true")
    a, b = (torch.load(run / "checkpoints" / "step-00000020.ckpt", weights_only=True) for run in (whole, cut))
    kept = [tensors_in(saved["optimizer_states"][0]["state"]) for saved in (a, b)]
    assert any(tensor.dtype == torch.uint8 for tensor in kept[0])
    assert all(torch.equal(x, y) for x, y in zip(*kept, strict=True))
    assert a["state_dict"].keys() == b["state_dict"].keys()
    assert all(torch.equal(tensor, b["state_dict"][name]) for name, tensor in a["state_dict"].items())
