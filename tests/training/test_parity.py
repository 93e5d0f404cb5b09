"""One step of training against what others' scripts and papers compute: from the same weights, batch, noise and times
the same loss and the same gradient of every weight, to 1e-5 of the largest.

The others' side is written from their published formulas, with the networks and schedulers of the installed diffusers.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from diffusers.training_utils import (
    compute_density_for_timestep_sampling,
    compute_loss_weighting_for_sd3,
    compute_snr,
)
from torch import Tensor, nn

from ldm.common.randomness import low_discrepancy, normal
from ldm.common.registry import build
from ldm.conditioning import Conditioner
from ldm.diffusion import EDM, Denoiser, Eps, Flow, LearnedUncertainty, MinSNR, Schedule, V
from ldm.diffusion.noise import LogitNormal, LogNormal, UniformTimesteps
from ldm.diffusion.weighting import Weighting
from ldm.images import Preprocess
from ldm.interop.parts import unet_config, vae_config
from ldm.networks import Cond
from ldm.training.ldm_task import DiffusionTask
from ldm.training.optimization.learning_rate import LearningRate
from ldm.training.vae_task import VAETask
from tests.interop.configs import CROSS, PLAIN, unet, vae
from tests.interop.models import diffusers, randomised

SCALE = 0.18215  # Stable Diffusion's factor for latents
SEED, B = 5, 4
POSITION = torch.arange(40, 40 + B)
STABLE_DIFFUSION = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


class Nets:
    """The same networks as diffusers' and as ours, and a batch."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.vae = randomised(diffusers.AutoencoderKL(**vae(8, 16)), 0.05)
        self.unet = randomised(diffusers.UNet2DConditionModel(**unet(CROSS, PLAIN))).requires_grad_(True)
        self.images = torch.rand(B, 3, 16, 16) * 2 - 1
        self.tokens = torch.randn(B, 7, 12)

    def latents(self) -> Tensor:
        """A draw of the posterior, scaled, as the scripts train on it: (B, 4, 8, 8)."""
        posterior = self.vae.encode(self.images).latent_dist
        draw = posterior.mean + posterior.std * normal(SEED, "posterior", POSITION, tuple(posterior.mean.shape[1:]))
        return SCALE * draw

    def noise(self) -> Tensor:
        return normal(SEED, "noise", POSITION, (4, 8, 8))

    def task(self, parameterization, monkeypatch, **options) -> DiffusionTask:
        """Ours, with latents=online, on these captions' states."""
        config = self.unet.config
        network = build(unet_config.from_diffusers(config), "network")
        network.load_state_dict(unet_config.weights(self.unet.state_dict(), config))
        task = DiffusionTask(
            our_vae(self.vae),
            Denoiser(network, parameterization, **options),
            Conditioner({}),
            Preprocess(3, 16, 16),
            (torch.zeros(4), torch.full((4,), 1 / SCALE)),
            {},
            learning_rate=LearningRate(1e-3),
            seed=SEED,
        )
        monkeypatch.setattr(task, "condition", lambda *_: Cond(tokens=self.tokens))
        return task


def our_vae(theirs):
    ours = build(vae_config.from_diffusers(theirs.config), "vae")
    ours.load_state_dict(vae_config.weights_from_diffusers(theirs.state_dict(), theirs.config))
    return ours


@pytest.fixture
def nets() -> Nets:
    return Nets()


def quantiles() -> Tensor:
    """The uniform numbers from which a step's noise levels come."""
    return low_discrepancy(SEED, "sigma", POSITION)


def stepped(task, nets: Nets) -> Tensor:
    """Our loss after its backward pass."""
    loss, _ = task.losses({"image": nets.images, "position": POSITION}, task.trained)
    loss.backward()
    return loss.detach()


def assert_same(ours: nn.Module, theirs: nn.Module, loss: Tensor, wanted: Tensor, factor: float = 1.0) -> None:
    """Equal losses, and equal gradients of weights by the same names. `factor` is what their loss is of ours."""
    assert loss.item() == pytest.approx(wanted.item() / factor, rel=1e-5)
    a, b = (dict(module.named_parameters()) for module in (ours, theirs))
    assert a.keys() == b.keys()
    largest = max(p.grad.abs().max().item() for p in b.values()) / factor
    assert largest > 1e-4, "no gradient proves nothing"
    for name, parameter in a.items():
        torch.testing.assert_close(
            parameter.grad, b[name].grad / factor, atol=1e-5 * largest, rtol=0, msg=lambda text, n=name: f"{n}: {text}"
        )


# diffusers' train_text_to_image ---------------------------------------------------------------------------------------


def text_to_image(nets: Nets, prediction: str, gamma: float | None, noise: Tensor, t: Tensor) -> Tensor:
    """The loss of the script, with --snr_gamma where `gamma` is given."""
    scheduler = diffusers.DDPMScheduler(prediction_type=prediction, **STABLE_DIFFUSION)
    latents = nets.latents()
    predicted = nets.unet(scheduler.add_noise(latents, noise, t), t, nets.tokens).sample
    target = noise if prediction == "epsilon" else scheduler.get_velocity(latents, noise, t)
    each = F.mse_loss(predicted, target, reduction="none").mean((1, 2, 3))  # (B,)
    if gamma is None:
        return each.mean()
    snr = compute_snr(scheduler, t)
    weight = snr.clamp(max=gamma) / (snr if prediction == "epsilon" else snr + 1)
    return (weight * each).mean()


@pytest.mark.parametrize("gamma", [None, 5.0])
@pytest.mark.parametrize(("prediction", "parameterization"), [("epsilon", Eps), ("v_prediction", V)])
def test_eps_and_v_with_min_snr_are_the_script_of_text_to_image(nets, monkeypatch, prediction, parameterization, gamma):
    weighting = None if gamma is None else MinSNR(gamma)
    task = nets.task(parameterization(Schedule()), monkeypatch, noise=UniformTimesteps(), weighting=weighting)
    t = (1000 * quantiles()).long()
    assert t.min() < 300 and t.max() > 600  # min-SNR with 5 changes low ones alone
    wanted = text_to_image(nets, prediction, gamma, nets.noise(), t)
    wanted.backward()
    assert_same(task.trained["denoiser"].network, nets.unet, stepped(task, nets), wanted)


def test_offset_noise_is_the_scripts(nets, monkeypatch):
    """--noise_offset adds to the noise, which is the target too, one number a sample and channel."""
    task = nets.task(Eps(Schedule()), monkeypatch, noise=UniformTimesteps(), offset_noise=0.1)
    noise = nets.noise() + 0.1 * normal(SEED, "offset noise", POSITION, (4, 1, 1))
    wanted = text_to_image(nets, "epsilon", None, noise, (1000 * quantiles()).long())
    wanted.backward()
    assert_same(task.trained["denoiser"].network, nets.unet, stepped(task, nets), wanted)


# diffusers' train_dreambooth_sd3 --------------------------------------------------------------------------------------


def stable_diffusion_3(nets: Nets, t: Tensor, preconditioned: bool) -> Tensor:
    """The loss of the script at times `t` (B,), with its default --weighting_scheme=logit_normal."""
    x, noise = nets.latents(), nets.noise()
    sigmas = t[:, None, None, None]
    noisy = (1 - sigmas) * x + sigmas * noise
    predicted = nets.unet(noisy, 1000 * t, nets.tokens).sample
    weight = compute_loss_weighting_for_sd3("logit_normal", sigmas)
    error = noisy - sigmas * predicted - x if preconditioned else predicted - (noise - x)
    return (weight * error.square()).flatten(1).mean(1).mean()


class SquaredTime(Weighting):
    """t^2: what preconditioning the output, but not dividing by c_out^2, comes to."""

    def weight(self, sigma, coefficients):
        return (sigma / (1 + sigma)).square()


@pytest.mark.parametrize("preconditioned", [False, True])
def test_flow_is_the_script_of_stable_diffusion_3(nets, monkeypatch, preconditioned):
    """The paper's loss (Esser et al. 2024, section 3.1) is that of --precondition_outputs=0. The script's default takes
    the error of x0, t^2 times the paper's, which ours has no name for."""
    weighting = SquaredTime() if preconditioned else None
    task = nets.task(Flow(), monkeypatch, noise=LogitNormal(), weighting=weighting)
    t = torch.distributions.Normal(0, 1).icdf(quantiles()).sigmoid()
    wanted = stable_diffusion_3(nets, t, preconditioned)
    wanted.backward()
    assert_same(task.trained["denoiser"].network, nets.unet, stepped(task, nets), wanted)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flows_times_are_those_of_stable_diffusion_3(shift, monkeypatch):
    """The script looks up logit-normal numbers in the scheduler's table of 1000 shifted times, noisiest first."""
    table = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift).sigmas  # (1000,), falling
    u = torch.linspace(0.001, 0.999, 999)
    monkeypatch.setattr(torch, "normal", lambda mean, std, **_: mean + std * torch.special.ndtri(1 - u))
    generated = compute_density_for_timestep_sampling("logit_normal", len(u), logit_mean=0.3, logit_std=0.8)
    theirs = table[(1000 * generated).long()]
    sigma = LogitNormal(-0.3, 0.8, shift).sigma(u, Flow())
    torch.testing.assert_close(sigma / (1 + sigma), theirs, atol=shift / 1000, rtol=0)


# EDM and EDM2 ---------------------------------------------------------------------------------------------------------


def edm(nets: Nets, data: float, sigma: Tensor) -> Tensor:
    """lambda(sigma) |D(x + n; sigma) - x|^2 of each sample, (B,), by Karras et al. 2022, table 1, last column; a mean
    over pixels in place of the sum."""
    x, s = nets.latents(), sigma[:, None, None, None]
    noisy = x + s * nets.noise()
    c_skip = data**2 / (s**2 + data**2)
    c_out = s * data / (s**2 + data**2).sqrt()
    c_in = 1 / (s**2 + data**2).sqrt()
    denoised = c_skip * noisy + c_out * nets.unet(c_in * noisy, sigma.log() / 4, nets.tokens).sample
    weight = (s**2 + data**2) / (s * data) ** 2
    return (weight * (denoised - x).square()).mean((1, 2, 3))


def log_normal(mean: float, std: float) -> Tensor:
    return (mean + std * torch.distributions.Normal(0, 1).icdf(quantiles())).exp()


def test_edm_is_its_papers(nets, monkeypatch):
    task = nets.task(EDM(sigma_data=0.5), monkeypatch, noise=LogNormal(-1.2, 1.2))
    wanted = edm(nets, 0.5, log_normal(-1.2, 1.2)).mean()
    wanted.backward()
    assert_same(task.trained["denoiser"].network, nets.unet, stepped(task, nets), wanted)


def test_edm2_is_its_papers_with_its_learned_uncertainty(nets, monkeypatch):
    """lambda / e^u |D - x|^2 + u (Karras et al. 2024, eq. 14 and 15), and the gradient of u's own weights."""
    torch.manual_seed(1)
    weighting = LearnedUncertainty(16)
    nn.init.normal_(weighting.slope, std=0.3)
    task = nets.task(EDM(sigma_data=0.5), monkeypatch, noise=LogNormal(-0.4, 1.0), weighting=weighting)
    sigma, slope = log_normal(-0.4, 1.0), weighting.slope.detach().clone().requires_grad_(True)
    fourier = math.sqrt(2) * torch.cos(sigma.log()[:, None] / 4 * weighting.frequency + weighting.phase)
    u = fourier @ slope
    wanted = (edm(nets, 0.5, sigma) / u.exp() + u).mean()
    wanted.backward()
    assert u.abs().max() > 0.1
    assert_same(task.trained["denoiser"].network, nets.unet, stepped(task, nets), wanted)
    torch.testing.assert_close(task.trained["denoiser"].weighting.slope.grad, slope.grad, atol=0, rtol=1e-5)


# LDM's first stage ----------------------------------------------------------------------------------------------------


KL_WEIGHT = 0.01  # LDM's own 1e-6 would be lost in rounding


class Perceptual(nn.Module):
    """In LPIPS's place: a distance of features (B, 1, 1, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1).requires_grad_(False)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return (self.conv(a).tanh() - self.conv(b).tanh()).square().mean((1, 2, 3), keepdim=True)


def lpips_with_discriminator(
    theirs, perceptual, critic, images: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The generator's loss, its adaptive weight and the critic's loss, by LDM's LPIPSWithDiscriminator: sums over
    pixels and latents over B, perceptual weight 1, log-variance 0, disc_weight 0.5."""
    posterior = theirs.encode(images).latent_dist
    decoded = theirs.decode(posterior.mean + posterior.std * noise).sample
    rec = (images - decoded).abs() + perceptual(images, decoded)  # (B, C, H, W)
    logvar = torch.zeros(())
    nll = (rec / logvar.exp() + logvar).sum() / len(images)
    kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).sum((1, 2, 3))
    generator = -critic(decoded).mean()
    last = theirs.decoder.conv_out.weight
    pulls = [torch.autograd.grad(part, last, retain_graph=True)[0].norm() for part in (nll, generator)]
    weight = 0.5 * (pulls[0] / (pulls[1] + 1e-4)).detach()
    total = nll + KL_WEIGHT * kl.sum() / len(images) + weight * generator
    critics = 0.5 * (F.relu(1 - critic(images)).mean() + F.relu(1 + critic(decoded.detach())).mean())
    return total, weight, critics


def test_the_first_stage_is_latent_diffusions(nets, monkeypatch):
    """Ours is LDM's over the C H W pixel values of an image; its kl_weight is the beta that `equivalents` tells."""
    torch.manual_seed(2)
    perceptual, pixels, f = Perceptual(), 3 * 20 * 20, 2
    images = 3 * torch.rand(B, 3, 20, 20) - 1.5  # beyond [-1, 1], where reconstructions go too
    monkeypatch.setattr("ldm.training.vae_losses.lpips", lambda *_: perceptual)
    terms = {"pixel": "l1", "perceptual": 1.0, "perceptual_net": "squeeze", "adversarial": 0.5, "adversarial_start": 0}
    terms |= {"critic_channels": 8, "critic_layers": 1}
    beta = KL_WEIGHT * 4 / (3 * f**2)
    task = VAETask(our_vae(nets.vae), Preprocess(3, 20, 20), beta, terms, learning_rate=LearningRate(1e-3), seed=SEED)
    theirs, critic = nets.vae.requires_grad_(True), task.criterion.critic
    noise = normal(SEED, "posterior", POSITION, (4, 10, 10))

    total, weight, critics = lpips_with_discriminator(theirs, perceptual, critic, images, noise)
    total.backward()
    wanted = torch.autograd.grad(critics, critic.parameters())
    critic.zero_grad()
    loss, logged = task.losses({"image": images, "position": POSITION}, task.trained)
    loss.backward()
    own = loss.detach() - logged["critic"].detach()
    assert_same(task.trained, theirs, own, total, pixels)
    assert logged["adversarial_weight"].item() == pytest.approx(weight.item() / pixels, rel=1e-5)
    assert logged["critic"].item() == pytest.approx(critics.item(), rel=1e-5)
    for parameter, gradient in zip(critic.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-6, rtol=1e-5)
