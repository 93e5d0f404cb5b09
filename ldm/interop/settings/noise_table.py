"""The noise schedule of a single file, from its tables of betas, of alpha-bars, or of sigmas (SDXL)."""

import itertools
import logging
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ldm.common.errors import UserError
from ldm.diffusion import Schedule
from ldm.interop.files.declared import each_setting

log = logging.getLogger("ldm")
SIGMAS = "denoiser.sigmas"  # of Stability AI's generative-models, in either order
_TABLES = {  # our names for a checkpoint's tables, and how near ours must be, relatively and absolutely
    "betas": ("betas", 1e-4, 2e-7),
    "alphas_cumprod": ("alphas_cumprod", 1e-3, 1e-7),
    SIGMAS: ("sigmas", 1e-3, 0.0),
}
_USUAL = (  # Stable Diffusion, DDPM, latent diffusion
    ("scaled_linear", 0.00085, 0.012),
    ("linear", 1e-4, 0.02),
    ("scaled_linear", 0.0015, 0.0195),
    ("scaled_linear", 0.0015, 0.0205),
)
_DIGITS = (2, 3, 7)  # 0.000850001 stands for 0.00085
# settings of the schedule, with Stable Diffusion's values, which are used where there is no table
_SETTINGS = {
    "linear_start": (0.00085,), "linear_end": (0.012,), "beta_start": (0.00085,), "beta_end": (0.012,),
    "timesteps": (1000,), "num_train_timesteps": (1000,), "beta_schedule": ("linear", "scaled_linear"),
    "rescale_betas_zero_snr": (False,), "zero_terminal_snr": (False,), "given_betas": (),
}  # fmt: skip


def schedule(state: dict[str, Tensor], declared: Mapping[str, Any], where: str) -> Schedule:
    """The schedule by the tables in a checkpoint; without any, Stable Diffusion's.

    The marker `ztsnr`, which is removed from `state`, means that the end was stretched to zero SNR. Raises UserError
    for tables that contradict each other, or that fit no schedule here.
    """
    zero = state.pop("ztsnr", None) is not None
    tables = {name: _checked(state[name], name, where) for name in _TABLES if name in state}
    if SIGMAS in tables:
        tables[SIGMAS] = tables[SIGMAS].sort().values
        state.pop(SIGMAS)
    if not tables:
        _refuse_settings(declared, where)
        return Schedule(zero_terminal_snr=zero)
    if found := next((s for s in _candidates(tables) if all(_is_of(s, *item) for item in tables.items())), None):
        if not found[1]:
            _warn_of_other_ends(declared, _betas(tables), where)
        kind, start, end = found[0]
        return Schedule(
            kind, start, end, timesteps=len(next(iter(tables.values()))), zero_terminal_snr=zero or found[1]
        )
    if all(any(_is_of(s, *item) for s in _candidates(dict([item]))) for item in tables.items()):
        raise UserError(f"{where} holds different noise schedules in {' and in '.join(tables)}: remove the wrong one.")
    raise UserError(f"{where}: its noise schedule is neither linear nor scaled_linear, and can't be represented here.")


def _checked(table: Tensor, name: str, where: str) -> Tensor:
    stored = table.is_floating_point() and table.itemsize > 1  # float8 is too coarse to tell schedules apart
    if table.ndim != 1 or len(table) < 2 or not stored or not table.isfinite().all():
        kind = f"{str(table.dtype).removeprefix('torch.')} of shape {tuple(table.shape)}"
        raise UserError(f"{where}: {name} is {kind}, where a list of finite noise levels belongs.")
    return table


Found = tuple[tuple[str, float | None, float | None], bool]  # kind and ends, and whether it ends at zero SNR


def _candidates(tables: Mapping[str, Tensor]) -> Iterator[Found]:
    """Common schedules, those with the table's ends in round numbers, and Stable Diffusion's with zero SNR."""
    yield from ((usual, False) for usual in _USUAL)
    betas = _betas(tables)
    for digits, kind in itertools.product(itertools.product(_DIGITS, _DIGITS), ("scaled_linear", "linear")):
        start, end = (float(f"{beta:.{n}g}") for beta, n in zip((betas[0], betas[-1]), digits, strict=True))
        if 0 < start <= end < 1:
            yield (kind, start, end), False
    yield ("scaled_linear", None, None), True


def _betas(tables: Mapping[str, Tensor]) -> list[float]:
    if "betas" in tables:
        return tables["betas"].double().tolist()
    abar = tables["alphas_cumprod"].double() if "alphas_cumprod" in tables else 1 / (1 + tables[SIGMAS].double() ** 2)
    return (1 - abar / torch.cat([abar.new_ones(1), abar[:-1]])).nan_to_num().tolist()


def _is_of(found: Found, name: str, table: Tensor) -> bool:
    """Whether a table is that of a schedule, to the precision in which it is stored."""
    (kind, start, end), zero = found
    own_name, relative, absolute = _TABLES[name]
    try:
        ours = getattr(Schedule(kind, start, end, timesteps=len(table), zero_terminal_snr=zero), own_name)
    except UserError:  # of so few timesteps it would be none
        return False
    rounding = torch.finfo(table.dtype).eps
    return torch.allclose(ours, table.double(), rtol=max(relative, rounding), atol=absolute)


def unread(declared: Mapping[str, Any]) -> list[str]:
    """Settings of noise levels that differ from Stable Diffusion's schedule, which is used where there is no table."""
    settings = [(key, value, _SETTINGS[name]) for key, name, value in each_setting(declared) if name in _SETTINGS]
    other = [f"{key}={str(value)[:40]}" for key, value, usual in settings if not any(_is(value, one) for one in usual)]
    targets = [
        (key, str(value)) for key, _, value in each_setting(declared) if key.endswith("discretization_config.target")
    ]
    return other + [f"{key}={value[-40:]}" for key, value in targets if not value.endswith(".LegacyDDPMDiscretization")]


def warn_of_unused(state: dict[str, Tensor], kind: str, where: str) -> None:
    """Warns of tables and of the marker `ztsnr` in a model without timesteps. The marker, and a table that no other
    reader of the file knows, are removed from `state`."""
    marker = [name for name in ("ztsnr", SIGMAS) if state.pop(name, None) is not None]
    if idle := [*marker, *(name for name in _TABLES if name in state)]:
        log.warning(
            "%s: its %s isn't used: the model predicts %s, over all noise levels", where, " and ".join(idle), kind
        )


def _refuse_settings(declared: Mapping[str, Any], where: str) -> None:
    if other := unread(declared):
        raise UserError(f"{where} sets {', '.join(other[:4])} without a table of betas, which isn't supported.")


def _warn_of_other_ends(declared: Mapping[str, Any], betas: list[float], where: str) -> None:
    """Warns of settings that differ from the tables, with which the model was trained."""
    ends = {"linear_start": betas[0], "beta_start": betas[0], "linear_end": betas[-1], "beta_end": betas[-1]}
    for key, name, value in each_setting(declared):
        if name in ends and not _is(value, ends[name]):
            log.warning(
                "%s sets %s=%s, but its table of noise levels has %.5g: the table is used",
                where,
                key,
                value,
                ends[name],
            )


def _is(value: Any, usual: Any) -> bool:
    if isinstance(usual, (bool, str)):
        return str(value).lower() == str(usual).lower()
    try:
        return math.isclose(float(value), usual, rel_tol=1e-2)
    except (TypeError, ValueError, RuntimeError):
        return False
