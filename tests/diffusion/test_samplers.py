import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ldm.common.errors import UserError
from ldm.diffusion import (
    EDM,
    SAMPLERS,
    X0,
    Denoiser,
    Eps,
    Flow,
    Schedule,
    V,
    calls,
    ddim,
    ddpm,
    dpmpp_2m,
    dpmpp_2m_sde,
    euler,
    euler_ancestral,
    get_sampler,
    heun,
    unipc,
)

PREDICTIONS = {"epsilon": Eps, "v_prediction": V, "sample": X0}
DPM = {"algorithm_type": "dpmsolver++", "solver_type": "midpoint", "final_sigmas_type": "zero"}
UNIPC = {"solver_order": 2, "solver_type": "bh2", "final_sigmas_type": "zero"}
# diffusers' class and config; our sampler, its options and spacing; whether its x is ours or x / sqrt(1 + sigma^2)
CASES = {
    "ddpm": ("DDPMScheduler", {"variance_type": "fixed_small", "clip_sample": False}, ddpm, {}, "uniform", False),
    "ddpm-beta": (
        "DDPMScheduler",
        {"variance_type": "fixed_large", "clip_sample": False},
        ddpm,
        {"variance": "beta"},
        "leading",
        False,
    ),
    "ddpm-clip": (
        "DDPMScheduler",
        {"variance_type": "fixed_small", "clip_sample": True, "clip_sample_range": 0.3},
        ddpm,
        {"clip": 0.3},
        "uniform",
        False,
    ),
    "ddim": ("DDIMScheduler", {"clip_sample": False}, ddim, {}, "uniform", False),
    "ddim-leading": ("DDIMScheduler", {"clip_sample": False}, ddim, {}, "leading", False),
    "ddim-eta": ("DDIMScheduler", {"clip_sample": False}, ddim, {"eta": 0.6}, "uniform", False),
    "euler": ("EulerDiscreteScheduler", {}, euler, {}, "uniform", True),
    "euler-karras": ("EulerDiscreteScheduler", {"use_karras_sigmas": True}, euler, {}, "karras", True),
    "euler-exponential": (
        "EulerDiscreteScheduler",
        {"use_exponential_sigmas": True},
        euler,
        {},
        "exponential",
        True,
    ),
    "euler-ancestral": ("EulerAncestralDiscreteScheduler", {}, euler_ancestral, {}, "uniform", True),
    "heun": ("HeunDiscreteScheduler", {}, heun, {"variant": "karras"}, "uniform", True),
    "dpmpp": ("DPMSolverMultistepScheduler", DPM, dpmpp_2m, {}, "uniform", False),
    "dpmpp-sde": (
        "DPMSolverMultistepScheduler",
        DPM | {"algorithm_type": "sde-dpmsolver++"},
        dpmpp_2m_sde,
        {},
        "uniform",
        False,
    ),
    "unipc": ("UniPCMultistepScheduler", UNIPC, unipc, {}, "uniform", False),
    "unipc-1": ("UniPCMultistepScheduler", UNIPC | {"solver_order": 1}, unipc, {"order": 1}, "uniform", False),
    "unipc-3": ("UniPCMultistepScheduler", UNIPC | {"solver_order": 3}, unipc, {"order": 3}, "uniform", False),
}
SPACINGS = {"uniform": "trailing", "leading": "leading", "karras": "linspace", "exponential": "linspace"}


RUNS = [
    (case, prediction, steps)
    for case in CASES
    for prediction in PREDICTIONS
    for steps in (1, 20)
    if not (case.startswith("euler") and prediction == "sample")  # diffusers' Euler doesn't take x0
    and not (case.endswith(("-karras", "-exponential")) and steps == 1)  # and starts one such step at the least noise
]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize(("case", "prediction", "steps"), RUNS)
def test_runs_are_diffusers(case, prediction, steps, schedulers, step_noise, recorder):
    """The network's inputs at every call, its timesteps and the result: one step, and a whole run."""
    name, config, sampler, options, spacing, same_space = CASES[case]
    theirs = schedulers(
        name,
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type=prediction,
        timestep_spacing=SPACINGS[spacing],
        **config,
    )
    parameterization = PREDICTIONS[prediction](Schedule())
    sigmas = parameterization.grid(steps, spacing)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=generator) * sigmas[0]
    noise = step_noise(list(torch.randn(steps, 2, 3, 4, 4, dtype=torch.float64, generator=generator)))

    ours, reference = recorder(), recorder()
    result = sampler(Denoiser(ours, parameterization), x, sigmas, noise=noise, **options)
    theirs.set_timesteps(steps)
    sample = x if same_space else x / math.sqrt(1 + sigmas[0] ** 2)
    eta = {"eta": options["eta"]} if name == "DDIMScheduler" and options else {}
    for t in theirs.timesteps:
        sample = theirs.step(reference(theirs.scale_model_input(sample, t), t), t, sample, **eta).prev_sample

    assert len(ours.inputs) == len(reference.inputs) == calls(sampler.__name__, steps)
    torch.testing.assert_close(torch.stack(ours.timesteps), torch.stack(reference.timesteps), rtol=0, atol=1e-10)
    torch.testing.assert_close(torch.stack(ours.inputs), torch.stack(reference.inputs), rtol=0, atol=1e-11)
    last_noise = 1e-9 if name == "DDPMScheduler" else 1e-11  # DDPMScheduler adds noise of 1e-10 to the last step too
    torch.testing.assert_close(result, sample, rtol=0, atol=last_noise)


@pytest.mark.parametrize("variance", ["posterior", "beta"])
def test_ddpm_over_the_whole_table_is_diffusers(variance, schedulers, step_noise, recorder):
    config = {"num_train_timesteps": 100, "beta_start": 0.001, "beta_end": 0.2, "clip_sample": False}
    theirs = schedulers(
        "DDPMScheduler", variance_type={"posterior": "fixed_small", "beta": "fixed_large"}[variance], **config
    )
    parameterization = Eps(Schedule("linear", 0.001, 0.2, timesteps=100))
    sigmas = parameterization.grid(100, "table")
    x, *noise = torch.randn(100, 2, 3, 4, 4, dtype=torch.float64)
    ours, reference = recorder(), recorder()
    result = ddpm(
        Denoiser(ours, parameterization),
        x * (1 + sigmas[0] ** 2).sqrt(),
        sigmas,
        noise=step_noise(noise),
        variance=variance,
    )
    for t in theirs.timesteps:
        x = theirs.step(reference(x, t), t, x).prev_sample
    torch.testing.assert_close(torch.stack(ours.inputs), torch.stack(reference.inputs), rtol=0, atol=1e-10)
    torch.testing.assert_close(result, x, rtol=0, atol=1e-10)


def test_ddim_with_stable_diffusions_config_is_diffusers(schedulers, recorder):
    """Its last alpha is abar_0, not 1, and its timesteps are offset by 1: a grid that ends at sigma_0."""
    ends = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    theirs = schedulers("DDIMScheduler", clip_sample=False, set_alpha_to_one=False, steps_offset=1, **ends)
    theirs.set_timesteps(20)
    schedule = Schedule()
    sigmas = schedule.sigma(torch.cat([theirs.timesteps, torch.tensor([0])]))
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    reference = recorder()
    result = ddim(Denoiser(recorder(), Eps(schedule)), x * (1 + sigmas[0] ** 2).sqrt(), sigmas)
    for t in theirs.timesteps:
        x = theirs.step(reference(x, t), t, x).prev_sample
    torch.testing.assert_close(result * schedule.alphas_cumprod[0].sqrt(), x, rtol=0, atol=1e-9)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_euler_on_flow_is_diffusers(shift, schedulers, recorder):
    theirs = schedulers("FlowMatchEulerDiscreteScheduler")
    sigmas = Flow().grid(20, shift=shift)
    t = sigmas / (1 + sigmas)
    theirs.set_timesteps(sigmas=t[:-1].tolist())
    z = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    reference = recorder()
    result = euler(Denoiser(recorder(), Flow()), z * (1 + sigmas[0]), sigmas)
    for t in theirs.timesteps:
        z = theirs.step(reference(z, t), t, z).prev_sample
    torch.testing.assert_close(result, z, rtol=0, atol=1e-9)


def test_heun_on_flow_is_diffusers(schedulers, recorder):
    theirs = schedulers("FlowMatchHeunDiscreteScheduler")
    sigmas = Flow().grid(20)
    t = sigmas / (1 + sigmas)
    theirs.set_timesteps(20)
    theirs.sigmas = torch.cat([t[:1], t[1:-1].repeat_interleave(2), t[-1:]])  # theirs starts at t = 1
    theirs.timesteps = 1000 * torch.cat([t[:1], t[1:-1].repeat_interleave(2)])
    z = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    ours, reference = recorder(), recorder()
    result = heun(Denoiser(ours, Flow()), z * (1 + sigmas[0]), sigmas)
    for t in theirs.timesteps:
        z = theirs.step(reference(z, t), t, z).prev_sample
    torch.testing.assert_close(torch.stack(ours.inputs), torch.stack(reference.inputs), rtol=0, atol=1e-10)
    torch.testing.assert_close(result, z, rtol=0, atol=1e-9)


PARAMETERIZATIONS = {
    "eps, v": Eps(),  # one grid
    "v, zero SNR": V(Schedule(zero_terminal_snr=True)),
    "x0, cosine": X0(Schedule("cosine")),
    "flow": Flow(),
    "edm": EDM(),
}
WAYS = {
    **{name: (name, {}) for name in SAMPLERS},
    "ddim, eta 0.5": ("ddim", {"eta": 0.5}),
    "ddpm, beta": ("ddpm", {"variance": "beta"}),
    "unipc, order 1": ("unipc", {"order": 1}),
    "unipc, order 3": ("unipc", {"order": 3}),
    "unipc, bh1": ("unipc", {"variant": "bh1"}),
}


def spread(name, sigmas, **options):
    """The standard deviation that a sampler gives white data N(0, 1): exactly, since their ideal denoiser is linear.

    Each source of noise, the start's and every step's, has a channel of its own.
    """
    x = torch.zeros(1, len(sigmas), 1, 1, dtype=torch.float64)
    x[0, 0] = sigmas[0]
    sources = iter(torch.eye(len(sigmas), dtype=torch.float64)[1:])
    denoise = lambda x, sigma: x / (1 + sigma[0] ** 2)  # noqa: E731
    return SAMPLERS[name](denoise, x, sigmas, noise=lambda x: next(sources).view_as(x), **options).norm().item()


@pytest.mark.parametrize("name", PARAMETERIZATIONS)
def test_few_steps_are_sane(name):
    """Whatever the sampler, the spacing and the number of steps: no step throws x beyond the data's spread."""
    parameterization = PARAMETERIZATIONS[name]
    zero_snr = name == "v, zero SNR"
    spacings = [s for s in parameterization.spacings if s != "table" and not (zero_snr and s == "leading")]
    for spacing in spacings:
        for steps in (1, 2, 3, 4, 6, 10, 20):
            sigmas = parameterization.grid(steps, spacing)
            for way, (sampler, options) in WAYS.items():
                assert spread(sampler, sigmas, **options) < 1.25, (spacing, steps, way)


@pytest.mark.parametrize("name", PARAMETERIZATIONS)
@pytest.mark.parametrize("second", ["heun", "dpmpp_2m", "unipc"])
def test_second_order_beats_euler_at_equal_calls(name, second):
    grid = PARAMETERIZATIONS[name].grid
    spacings = ("uniform", "karras", "exponential", "beta", "kl_optimal")
    for spacing in spacings:
        for steps in (5, 6, 8, 10, 20):
            error = abs(spread(second, grid(steps, spacing)) - 1)
            eulers = abs(spread("euler", grid(calls(second, steps), spacing)) - 1)
            assert error < eulers + 1e-3, (spacing, steps)


@pytest.mark.parametrize("name", PARAMETERIZATIONS)
def test_the_error_falls_at_the_samplers_order(name):
    """From 10 to 80 steps, equal in the flow's time t from the model's own noisiest level to sigma 0.05."""
    parameterization = PARAMETERIZATIONS[name]
    top, end = parameterization.sigma_max, 0.05

    def error(sampler, steps, options):
        t = torch.linspace(top / (1 + top), end / (1 + end), steps + 1, dtype=torch.float64)
        exact = top * math.sqrt((1 + end**2) / (1 + top**2))
        return abs(spread(sampler, t / (1 - t), **options) - exact)

    orders = {"heun": 2, "dpmpp_2m": 2, "dpmpp_2m_sde": 1.4, "unipc": 2.7, "unipc, order 1": 2, "unipc, bh1": 2.7}
    for way, (sampler, options) in WAYS.items():
        # exact for this data; of an error too small to have an order; and for what jumps
        if way in ("ddpm, beta", "unipc, order 3", "lcm"):
            continue
        fell = math.log2(error(sampler, 10, options) / error(sampler, 80, options)) / 3
        assert fell > 0.9 * orders.get(way, 1), way


ORDERS = [
    ("euler", {}, 1),
    ("ddim", {}, 1),
    ("heun", {}, 2),
    ("heun", {"variant": "karras"}, 2),
    ("dpmpp_2m", {}, 2),
    ("unipc", {"order": 1}, 2),
    ("unipc", {}, 3),
    ("unipc", {"variant": "bh1"}, 3),
]


@pytest.mark.parametrize(("name", "options", "expected"), ORDERS)
def test_order_of_convergence(name, options, expected, gaussian):
    """On a grid that ends above 0: the last step to 0 leaves a floor that would hide the order."""
    x = torch.randn(2, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 20
    exact = gaussian.solution(x, 20.0, 0.05)
    errors = []
    for steps in (200, 400):
        sigmas = EDM(sigma_min=0.05, sigma_max=20.0).grid(steps + 1)[:-1]
        errors.append((SAMPLERS[name](gaussian, x, sigmas, **options) - exact).abs().max().item())
    order = math.log2(errors[0] / errors[1])
    assert order == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_generates_the_data(name, gaussian):
    """Mean and spread of Gaussian data, for the stochastic ones too."""
    sampler, generator = SAMPLERS[name], torch.Generator().manual_seed(0)
    x = torch.randn(1500, 2, 4, 4, generator=generator) * 40
    sigmas = EDM(sigma_max=40.0).grid(60)
    denoise = gaussian if name != "lcm" else lambda x, sigma: gaussian.solution(x, sigma[0].item(), 0.0).to(x)
    samples = sampler(denoise, x, sigmas, noise=lambda x: torch.randn(x.shape, generator=generator))
    assert samples.dtype == torch.float32
    z = (samples - gaussian.mean) / gaussian.std  # (1500, 2, 4, 4), standard normal but for the steps' error
    assert abs(z.mean().item()) < 0.02
    shortfall = 0.09 if name in ("ddpm", "euler_ancestral") else 0.05 if name in ("ddim", "euler") else 0.015
    assert z.std().item() == pytest.approx(1, abs=shortfall)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 9])
def test_calls_and_progress(name, steps, gaussian):
    seen = []
    x = torch.randn(2, 2, 4, 4) * 80
    result = SAMPLERS[name](
        gaussian, x, EDM().grid(steps), on_step=lambda i, n, denoised: seen.append((i, n, denoised))
    )
    assert gaussian.calls == calls(name, steps)
    assert [(i, n) for i, n, _ in seen] == [(i, steps) for i in range(steps)]
    assert torch.equal(seen[-1][2], result)  # at sigma 0 the result is the denoised image itself


@pytest.mark.parametrize("name", SAMPLERS)
def test_inputs_are_kept_and_a_batch_equals_its_images(name, recorder):
    x = torch.randn(3, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    parameterization = Flow()
    sigmas = parameterization.grid(7)
    x = x * sigmas[0]
    start, grid = x.clone(), sigmas.clone()

    def sample(rows):
        generators = [torch.Generator().manual_seed(i) for i in rows]
        shape = x.shape[1:]
        draw = lambda _: torch.stack([torch.randn(shape, dtype=x.dtype, generator=g) for g in generators])  # noqa: E731
        return SAMPLERS[name](Denoiser(recorder(), parameterization), x[rows], sigmas, noise=draw)

    batch = sample([0, 1, 2])
    assert torch.equal(x, start) and torch.equal(sigmas, grid)
    torch.testing.assert_close(batch, torch.cat([sample([i]) for i in range(3)]), rtol=0, atol=1e-10)
    assert batch.isfinite().all()


def test_what_is_one_sampler_in_sigma_space(recorder):
    parameterization = Eps(Schedule(timesteps=30))
    sigmas = parameterization.grid(30, "table")
    denoiser = Denoiser(recorder(), parameterization)
    x, *noise = torch.randn(31, 2, 3, 4, 4, dtype=torch.float64)
    x = x * sigmas[0]

    def run(sampler, **options):
        draws = iter(noise)
        return sampler(denoiser, x, sigmas, noise=lambda _: next(draws), **options)

    torch.testing.assert_close(run(ddim, eta=1.0), run(ddpm))
    torch.testing.assert_close(run(euler_ancestral), run(ddpm))
    torch.testing.assert_close(run(ddim), run(euler))
    torch.testing.assert_close(run(dpmpp_2m_sde, eta=0.0), run(dpmpp_2m))
    assert run(ddim, eta=1e9).isfinite().all()  # the noise never exceeds the next sigma
    assert not torch.allclose(run(ddpm, variance="beta"), run(ddpm))


def test_clipping_bounds_what_is_denoised(recorder):
    seen = []
    sigmas = Eps().grid(5)
    x = torch.randn(2, 3, 4, 4) * sigmas[0].item()
    ddpm(Denoiser(recorder(), Eps()), x, sigmas, clip=0.5, on_step=lambda i, n, d: seen.append(d))
    assert max(d.abs().max().item() for d in seen) == 0.5


@pytest.mark.parametrize("parameterization", [Flow(), V(Schedule("linear", zero_terminal_snr=True)), EDM()])
@pytest.mark.parametrize("name", ["euler", "heun", "dpmpp_2m"])
def test_float32_keeps_its_digits(parameterization, name, gaussian):
    """From sigma 999 and 30,812 too."""
    sigmas = parameterization.grid(40, "karras")
    x = torch.randn(4, 2, 4, 4, generator=torch.Generator().manual_seed(0)) * sigmas[0].item()
    exact = SAMPLERS[name](gaussian, x.double(), sigmas)
    torch.testing.assert_close(SAMPLERS[name](gaussian, x, sigmas).double(), exact, rtol=0, atol=5e-6)


class _NoSync(TorchDispatchMode):
    """Fails where a tensor's value is read on the host: on an accelerator each such read waits for the device."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert "_local_scalar_dense" not in str(function) and "is_nonzero" not in str(function), "a host sync"
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("parameterization", [Eps(), Flow(), EDM()])
def test_nothing_is_read_on_the_host(name, parameterization, recorder):
    sigmas = parameterization.grid(4)
    x = torch.randn(2, 3, 4, 4)
    with pytest.raises(AssertionError, match="sync"), _NoSync():
        x.sum().item()
    with _NoSync():
        SAMPLERS[name](Denoiser(recorder(), parameterization), x, sigmas)


def test_samplers_by_name():
    assert get_sampler("heun") is heun
    assert get_sampler("ddim", eta=0.5).keywords == {"eta": 0.5}
    with pytest.raises(UserError, match="Did you mean 'dpmpp_2m'"):
        get_sampler("dpmpp2m")
    with pytest.raises(UserError, match="no option 'eta'"):
        get_sampler("euler", eta=1.0)
    with pytest.raises(UserError, match="no sampler 'plms'"):
        calls("plms", 3)
    with pytest.raises(UserError, match="heun has no variant 'sigma'"):
        heun(None, torch.zeros(1), torch.ones(2), variant="sigma")
    for wrong in ({"order": 4}, {"variant": "bh3"}):
        with pytest.raises(UserError, match="unipc has no"):
            unipc(None, torch.zeros(1), torch.ones(2), **wrong)
    with pytest.raises(UserError, match="variance"):
        ddpm(None, torch.zeros(1), torch.ones(2), variance="learned")


@pytest.mark.parametrize("sigmas", [[1.0, 2.0, 0.0], [2.0, 1.0, 1.0, 0.0], [1.0], [1.0, -1.0]])
def test_grids_that_do_not_fall_are_refused(sigmas, gaussian):
    with pytest.raises(UserError, match="fall strictly"):
        euler(gaussian, torch.zeros(1, 2, 4, 4), torch.tensor(sigmas))
