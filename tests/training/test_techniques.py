"""What the config chooses reaches the loss and the weights: offset noise, zero-terminal SNR, precision, Muon, DiT."""

import copy

import pytest
import torch

import ldm
from ldm.common.errors import UserError
from ldm.common.randomness import normal
from ldm.diffusion import V, ddim
from ldm.diffusion.schedule import Schedule
from ldm.networks import Cond, DiT
from ldm.training.ldm_task import diffusion_loss
from ldm.training.trainer.speed import checkpoint_blocks, precision_of

POSITION = torch.arange(6)


class Zero(torch.nn.Module):
    """Predicts nothing, and keeps what it was given."""

    def forward(self, x, c_noise, cond):
        self.x, self.c_noise = x, c_noise
        return torch.zeros_like(x)


@pytest.mark.parametrize("strength", [0.0, 0.3])
def test_offset_noise_is_the_same_at_all_places(strength):
    network, x0 = Zero(), torch.zeros(6, 3, 4, 4)
    denoiser = ldm.Denoiser(network, V(), offset_noise=strength)
    loss = diffusion_loss(denoiser, Cond(), x0, seed=7, position=POSITION)
    noise = normal(7, "noise", POSITION, (3, 4, 4)) + strength * normal(7, "offset noise", POSITION, (3, 1, 1))
    c_in_sigma = network.x / noise  # with x0 = 0 the network's input is c_in sigma noise
    torch.testing.assert_close(c_in_sigma, c_in_sigma[:, :1, :1, :1].expand_as(c_in_sigma), rtol=1e-3, atol=1e-4)
    alpha = (1 - c_in_sigma[:, 0, 0, 0] ** 2).sqrt()  # the target is alpha noise
    torch.testing.assert_close(loss, alpha**2 * noise.square().mean((1, 2, 3)), rtol=1e-3, atol=1e-5)
    with pytest.raises(UserError, match="offset_noise"):
        ldm.Denoiser(network, V(), offset_noise=-0.1)


def test_zero_terminal_snr_is_trained_and_sampled_from_pure_noise():
    """The last timestep is trained and sampled with a signal below 1e-3; Stable Diffusion's leaks 7 %."""
    zero, plain = (V(Schedule(zero_terminal_snr=flag)) for flag in (True, False))
    network = Zero()
    position = torch.arange(3000)
    diffusion_loss(ldm.Denoiser(network, zero), Cond(), torch.zeros(3000, 1, 1, 1), seed=0, position=position)
    assert network.c_noise.max().item() == pytest.approx(999)
    for parameterization, pure in ((zero, True), (plain, False)):
        sigmas = parameterization.grid(20)
        assert sigmas[0].item() == parameterization.sigma_max
        signal = (1 + sigmas[0].item() ** 2) ** -0.5  # how much of x0 is in what the network is given first
        assert (signal < 1e-3) == pure


def test_zero_terminal_sampling_is_diffusers():
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
    )
    theirs.set_timesteps(10)
    parameterization = V(Schedule(zero_terminal_snr=True))
    sigmas = parameterization.grid(10)
    noise = torch.randn(1, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def network(x, c_noise, cond=None):
        return torch.sin(2 * x) * 0.7 + c_noise.view(-1, 1, 1, 1) / 2000

    result = ddim(ldm.Denoiser(network, parameterization), noise * sigmas[0], sigmas)
    sample = noise
    for t in theirs.timesteps:
        sample = theirs.step(network(sample, t[None].double()), t, sample).prev_sample
    torch.testing.assert_close(result, sample.double(), rtol=0, atol=2e-3)  # theirs is at sigma = infinity


def test_precision_is_by_the_machine_and_weights_in_half_are_refused(monkeypatch):
    assert [precision_of(p) for p in (16, "16", "bf16", 32)] == ["16-mixed", "16-mixed", "bf16-mixed", "32-true"]
    assert precision_of("bf16-mixed") == "bf16-mixed" and precision_of("16-mixed", "gpu") == "16-mixed"
    for wrong, instead in (
        ("16-true", "bf16-mixed"),
        ("bf16-true", "bf16-mixed"),
        (64, "32-true"),
        ("64-true", "32-true"),
    ):
        with pytest.raises(UserError, match=f"{wrong}.*{instead}"):
            precision_of(wrong)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert precision_of("auto") == "32-true"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for has, wanted in ((True, "bf16-mixed"), (False, "32-true")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, has=has: has)
        assert precision_of("auto") == precision_of("auto", "gpu") == wanted
        assert precision_of("auto", "cpu") == "32-true"


@pytest.mark.parametrize(
    "make",
    [
        lambda: ldm.UNet(2, channels=[8, 16], heads=2),
        lambda: DiT(2, channels=8, depth=2),
        lambda: ldm.AutoencoderKL(2, 2, channels=8),
    ],
)
def test_checkpointed_blocks_give_the_same_gradients_for_less_memory(make):
    torch.manual_seed(0)
    plain = make()
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    other = copy.deepcopy(plain)
    checkpoint_blocks(other)
    given = (torch.randn(2, 2, 8, 8), torch.tensor([0.1, 0.7]))
    kept = []
    for network in (plain, other):
        saved: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=saved: s.append(t.numel()) or t, lambda t: t):
            out = network.decode(network.moments(given[0])[:, :2]) if hasattr(network, "decode") else network(*given)
        kept.append(sum(saved))
        out.square().sum().backward()
    assert kept[1] < kept[0] / 2
    for a, b in zip(plain.parameters(), other.parameters(), strict=True):
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, atol=1e-6, rtol=1e-6)
    assert list(plain.state_dict()) == list(other.state_dict())


def test_all_of_stage_two_together(runs, train):
    """A DiT with Muon, learned weights, shifted and offset noise, in bfloat16, accumulated; and its samples."""
    words = [
        "~network.attention",
        "network=dit",
        "network.channels=16",
        "network.depth=2",
        "network.heads=2",
        "network.patch=2",
        "diffusion=edm2",
        "diffusion.noise.shift=1.5",
        "diffusion.offset_noise=0.1",
        "optimizer.name=muon",
        "trainer.precision=bf16-mixed",
        "trainer.accumulate_grad_batches=2",
        "trainer.max_steps=3",
        "gradient_checkpointing=true",
    ]
    run = train("ldm", runs, "name=together", *words)
    model = ldm.load(run)
    assert type(model.denoiser.network).__name__ == "DiT"
    assert model.denoiser.weighting.slope.abs().max() > 0
    state = torch.load(run / "checkpoints" / "step-00000003.ckpt", weights_only=True)
    assert state["global_step"] == 3 and state["optimizer_states"][0]["param_groups"][0]["matrix"] is True
    assert all(t.dtype == torch.float32 for t in state["state_dict"].values() if t.is_floating_point())
    options = {"sampler": "unipc", "spacing": "beta", "steps": 4, "guidance": 2.0, "interval": (0.1, 5.0)}
    images = model(labels=[3, 7], output="pt", rescale=0.5, **options)
    assert images.shape == (2, 1, 8, 8) and images.isfinite().all()
    images = model(labels=[3], size=12, output="pt", shift="auto")
    assert images.shape == (1, 1, 12, 12)
