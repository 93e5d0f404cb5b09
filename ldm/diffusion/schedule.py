"""The classic notation (beta, alpha-bar, T = 1000), and how it maps to sigma.

DDPM (Ho et al. 2020) writes x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) noise, with abar_t the product of 1 - beta_0 to
1 - beta_t. Divided by sqrt(abar_t) that is x = x0 + sigma noise with sigma = sqrt((1 - abar_t) / abar_t), which is all
that the rest of the code knows. Timesteps count from 0; between them ln sigma is linear in t.
"""

import math

import torch
from torch import Tensor

from ldm.common.errors import UserError, did_you_mean
from ldm.common.registry import register

_ENDS = {"linear": (1e-4, 0.02), "scaled_linear": (0.00085, 0.012)}  # DDPM; Stable Diffusion. Both for T = 1000


@register
class Schedule:
    """A table of noise levels, float64: `betas`, `alphas_cumprod` and `sigmas`, each (T,), sigmas rising.

    - `linear`: beta from 1e-4 to 0.02 (Ho et al. 2020).
    - `scaled_linear`: sqrt(beta) is linear, from 0.00085 to 0.012 (Stable Diffusion; CompVis's code calls it "linear").
    - `cosine`: abar = cos^2(pi/2 (t + 0.008) / 1.008), beta at most 0.999 (Nichol, Dhariwal 2021, eq. 17).

    The default ends of beta belong to T = 1000; for a smaller T both are multiplied by 1000 / T, so that the last step
    is about as noisy. `beta_start` and `beta_end` are used as given.

    `zero_terminal_snr` stretches sqrt(abar) so that the last step is almost pure noise (Lin et al. 2023, algorithm 1).
    It needs V or X0, and sampling has to start at the last step. Since sigma = infinity can't be represented, the last
    abar is min(4.8973e-8, abar[T-2] / 4): sigma is at least 4,518, and at least twice the one before.
    """

    def __init__(
        self,
        kind: str = "scaled_linear",
        beta_start: float | None = None,
        beta_end: float | None = None,
        timesteps: int = 1000,
        zero_terminal_snr: bool = False,
    ):
        if timesteps < 2:
            raise UserError(f"timesteps={timesteps}: a schedule needs at least 2.")
        self.timesteps, self.zero_terminal_snr = timesteps, zero_terminal_snr
        if kind == "cosine":
            if beta_start is not None or beta_end is not None:
                raise UserError("the cosine schedule has no beta_start or beta_end: leave them out, or use linear.")
            betas = _cosine(timesteps)
        elif kind in _ENDS:
            start, end = _ends(kind, beta_start, beta_end, timesteps)
            power = 2 if kind == "scaled_linear" else 1
            betas = _linspace(start ** (1 / power), end ** (1 / power), timesteps) ** power
        else:
            raise UserError(f"schedule kind '{kind}' is unknown.{did_you_mean(kind, [*_ENDS, 'cosine'])}")

        abar = torch.cumprod(1 - betas, 0)
        if zero_terminal_snr:
            abar = _zero_terminal(abar)
            betas = 1 - abar / torch.cat([abar.new_ones(1), abar[:-1]])
        self.betas, self.alphas_cumprod = betas, abar
        self.sigmas = ((1 - abar) / abar).sqrt()
        self._ln_sigmas = {torch.device("cpu"): self.sigmas.log()}

    def timestep(self, sigma: Tensor) -> Tensor:
        """The fractional timestep of `sigma` (B,), in [0, T - 1]: linear in ln sigma, clamped at both ends."""
        table = self._table(sigma.device)
        ln = sigma.to(table.dtype).log()
        low = torch.searchsorted(table, ln, right=True).sub(1).clamp(0, self.timesteps - 2)
        a, b = table[low], table[low + 1]
        return (low + ((ln - a) / (b - a)).clamp(0, 1)).to(sigma.dtype)

    def sigma(self, t: Tensor) -> Tensor:
        """The inverse of `timestep`; for whole numbers the table's own sigma. Integers give the table's dtype."""
        table = self._table(t.device)
        t_exact = t.to(table.dtype).clamp(0, self.timesteps - 1)
        low = t_exact.long().clamp(max=self.timesteps - 2)
        sigma = torch.lerp(table[low], table[low + 1], t_exact - low).exp()
        return sigma.to(t.dtype) if t.is_floating_point() else sigma

    def _table(self, device: torch.device) -> Tensor:
        """ln sigma on `device`, copied there once; in float32 on MPS, which has no float64."""
        if device not in self._ln_sigmas:
            dtype = torch.float32 if device.type == "mps" else torch.float64
            self._ln_sigmas[device] = self._ln_sigmas[torch.device("cpu")].to(device, dtype)
        return self._ln_sigmas[device]


def _linspace(start: float, end: float, n: int) -> Tensor:
    return torch.linspace(start, end, n, dtype=torch.float64, device="cpu")


def _ends(kind: str, start: float | None, end: float | None, timesteps: int) -> tuple[float, float]:
    scale = max(1.0, 1000 / timesteps)
    default_start, default_end = _ENDS[kind]
    start = default_start * scale if start is None else start
    end = default_end * scale if end is None else end
    if not 0 < start <= end < 1:
        raise UserError(
            f"{kind} schedule with timesteps={timesteps}: beta goes from {start:g} to {end:g}, and has to rise within "
            "(0, 1). Use more timesteps, or give beta_start and beta_end."
        )
    return start, end


def _cosine(timesteps: int) -> Tensor:
    f = torch.cos((_linspace(0, 1, timesteps + 1) + 0.008) / 1.008 * math.pi / 2) ** 2  # (T + 1,)
    return (1 - f[1:] / f[:-1]).clamp(max=0.999)


def _zero_terminal(abar: Tensor) -> Tensor:
    root = abar.sqrt()
    abar = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    abar[-1] = (abar[-2] / 4).clamp(max=4.8973e-8)
    return abar
