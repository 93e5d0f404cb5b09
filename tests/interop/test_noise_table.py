"""The noise schedule of a checkpoint, from its tables in any precision."""

import pytest
import torch

from ldm.common.errors import UserError
from ldm.diffusion import Schedule
from ldm.interop.settings.noise_table import schedule

STABLE = Schedule()
ENDS = [("scaled_linear", 0.00085, 0.012), ("linear", 1e-4, 0.02), ("linear", 0.0015, 0.0195)]


@pytest.mark.parametrize(
    "given",
    [
        {"kind": "linear", "beta_start": 0.0015, "beta_end": 0.0195},
        {"kind": "scaled_linear", "beta_start": 0.00085123, "beta_end": 0.0123},
        {"kind": "scaled_linear", "zero_terminal_snr": True},
    ],
)
def test_it_is_read_off_any_table_and_off_several(given):
    wanted = Schedule(**given)
    one, other = {"betas": wanted.betas.float()}, {"alphas_cumprod": wanted.alphas_cumprod.float()}
    sigmas = {"denoiser.sigmas": wanted.sigmas.flip(0).float()}
    for state in (one, other, one | other, sigmas, one | sigmas):
        found = schedule(dict(state), {}, "the file")
        torch.testing.assert_close(found.sigmas[:-1], wanted.sigmas[:-1], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("ends", ENDS, ids=str)
def test_tables_in_half_precision_are_those_that_were_rounded(dtype, ends):
    wanted = Schedule(*ends)
    tables = {"betas": wanted.betas.to(dtype), "alphas_cumprod": wanted.alphas_cumprod.float()}
    for given in (tables, {"betas": tables["betas"]}, {"alphas_cumprod": wanted.alphas_cumprod.to(dtype)}):
        if len(given) == 1 and ends[1] == 0.0015 and "alphas_cumprod" in given and dtype != torch.float64:
            continue  # alpha-bars rounded this much don't show its ends
        torch.testing.assert_close(schedule(given, {}, "the file").sigmas, wanted.sigmas, rtol=1e-6, atol=0)


def test_a_marker_says_that_the_end_was_stretched():
    state = {"ztsnr": torch.zeros(1), "betas": STABLE.betas.float()}
    assert torch.equal(schedule(state, {}, "the file").sigmas, Schedule(zero_terminal_snr=True).sigmas)
    assert schedule({"ztsnr": torch.zeros(0)}, {}, "the file").zero_terminal_snr and "ztsnr" not in state


B = STABLE.betas.float()


@pytest.mark.parametrize(
    ("state", "declared", "message"),
    [
        (
            {"betas": B, "alphas_cumprod": Schedule("linear").alphas_cumprod.float()},
            {},
            "holds different noise schedules",
        ),
        (
            {"betas": B, "alphas_cumprod": STABLE.alphas_cumprod[:500].float()},
            {},
            "holds different noise schedules|neither",
        ),
        ({"betas": B, "denoiser.sigmas": Schedule("linear").sigmas.float()}, {}, "in betas and in denoiser.sigmas"),
        ({"betas": torch.tensor([0.1, 0.25, 0.3])}, {}, "neither linear nor scaled_linear"),
        ({"denoiser.sigmas": STABLE.sigmas.float() * 2}, {}, "neither linear nor scaled_linear"),
        ({"betas": torch.tensor(0.1)}, {}, r"betas is float32 of shape \(\), where a list"),
        ({"betas": torch.zeros(0)}, {}, r"betas is float32 of shape \(0,\)"),
        ({"betas": torch.ones(1000, dtype=torch.int64)}, {}, "betas is int64"),
        ({"betas": torch.full((1000,), float("nan"))}, {}, "betas is float32 .* finite"),
        ({"alphas_cumprod": torch.zeros(1000)}, {}, "neither linear nor scaled_linear"),
        ({"betas": B.flip(0)}, {}, "neither linear nor scaled_linear"),
        ({}, {"hyper_parameters": {"model": {"linear_start": 0.0015}}}, "model.linear_start=0.0015 without a table"),
        ({"betas": B.to(torch.float8_e4m3fn)}, {}, "betas is float8_e4m3fn"),
        ({}, {"timesteps": torch.tensor([1000, 2])}, "timesteps=tensor"),
        ({}, {"stages": [{"beta_end": 0.02}]}, "stages.0.beta_end=0.02 without"),
        ({}, {"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr=True without a table"),
    ],
)
def test_what_is_no_schedule_or_two_is_refused(state, declared, message):
    with pytest.raises(UserError, match=message):
        schedule(state, declared, "the file")


def test_what_stable_diffusions_own_settings_say_is_taken():
    declared = {"hyper_parameters": {"linear_start": "0.00085", "timesteps": 1000, "beta_schedule": "linear"}}
    assert torch.equal(schedule({}, declared, "the file").sigmas, STABLE.sigmas)


def test_settings_that_differ_from_the_table_are_named_and_the_table_is_used(caplog):
    declared = {"hyper_parameters": {"linear_start": 0.00085, "linear_end": 0.0195}}
    assert torch.equal(schedule({"betas": B}, declared, "the file").sigmas, STABLE.sigmas)
    assert (
        "hyper_parameters.linear_end=0.0195, but its table of noise levels has 0.012: the table is used" in caplog.text
    )
    assert "linear_start" not in caplog.text
