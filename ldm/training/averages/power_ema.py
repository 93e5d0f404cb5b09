"""Averages with a power function's profile, and their combination to any other length afterwards.

Karras et al. 2024 (EDM2), section 3 and appendix C. At step t the weights of step s count as s^gamma: the average
grows with the run instead of having a fixed half-life. Its length is sigma_rel, the standard deviation of that profile
as a share of t. Two lengths are tracked and stored now and then; since all profiles are powers, a least-squares
combination of the stored ones approximates any third one very closely.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from ldm.common.errors import UserError
from ldm.training.averages import ema

LONGEST = 0.28  # at gamma 0, where all steps count alike, sigma_rel is 12^-1/2 = 0.289


def gamma_of(length: float) -> float:
    """The exponent of a length: the largest root of g^3 + 7 g^2 + (16 - q) g + 12 - q, q = length^-2 (EDM2, eq. 126).

    0.05 is 16.97, 0.10 is 6.94.
    """
    if not 0 < length <= LONGEST:
        raise UserError(f"an average of length {length} can't be made: give a share of the run, such as 0.05 or 0.1.")
    q = length**-2
    return float(np.roots([1, 7, 16 - q, 12 - q]).real.max())


def length_of(gamma: float) -> float:
    """sigma_rel = sqrt((g + 1) / ((g + 2)^2 (g + 3))) (EDM2, eq. 124)."""
    return ((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3))) ** 0.5


def decay_of(step: int, gamma: float) -> float:
    """The share that the old average keeps at `step`, counted from 1: (1 - 1/t)^(gamma + 1) (EDM2, eq. 127).

    At the first step it is 0, so that the initial weights vanish.
    """
    return (1 - 1 / step) ** (gamma + 1)


def update(averages: Sequence[nn.Module], lengths: Sequence[float], module: nn.Module, step: int) -> None:
    """Moves each average of a length to `module`, after optimizer step `step`."""
    for average, length in zip(averages, lengths, strict=True):
        ema.update(average, module, decay_of(step, gamma_of(length)))


def combination(
    lengths: Sequence[float], steps: Sequence[int], target_length: float, target_step: int | None = None
) -> torch.Tensor:
    """The weights (N,), float64, with which N stored averages, each of its own length and step, are combined into
    another one.

    They minimise the squared distance of the profiles (EDM2, eq. 139 to 142): with A_ij = <p_i, p_j> and
    B_i = <p_i, p_target>, A x = B. They are divided by their sum, to correct rounding.
    """
    gammas = torch.tensor([gamma_of(length) for length in lengths], dtype=torch.float64)
    times = torch.tensor(steps, dtype=torch.float64)
    target = torch.tensor([gamma_of(target_length)], dtype=torch.float64)
    end = torch.tensor([target_step or max(steps)], dtype=torch.float64)
    a = _products(gammas[:, None], times[:, None], gammas, times)
    b = _products(gammas[:, None], times[:, None], target, end)
    x = torch.linalg.lstsq(a, b, driver="gelsd").solution[:, 0]  # nearly singular, where snapshots stand close
    return x / x.sum()


def _products(a: torch.Tensor, ta: torch.Tensor, b: torch.Tensor, tb: torch.Tensor) -> torch.Tensor:
    """<p_a, p_b>, the integral of (a + 1) t^a / ta^(a+1) times (b + 1) t^b / tb^(b+1), up to the earlier of ta and
    tb."""
    ratio = (ta / tb) ** torch.where(ta < tb, b, -a)
    return (a + 1) * (b + 1) * ratio / ((a + b + 1) * torch.maximum(ta, tb))
