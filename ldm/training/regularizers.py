"""What bounds the latents of stage one: the KL term, a codebook, or nothing."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn

from ldm.common.errors import UserError
from ldm.common.randomness import uniform
from ldm.networks import Autoencoder, Gaussian

Figures = dict[str, Tensor]
Mean = Callable[[Tensor], Tensor]  # of a map (B, C, h, w), over the places that count
MEMORY = 0.98  # of the use of codes, by batch
REVIVES_EVERY = 10  # optimizer steps
LEAST_USE = 0.05  # share of the mean use from which on a code counts as used, in training


class Regularizer(nn.Module):
    """A term of the loss. What it has to remember of earlier batches is its state, in buffers."""

    def forward(self, network: Any, posterior: Gaussian, mean: Mean, step: int | None) -> tuple[Tensor, Figures]:
        """The term () and figures to log, in training at optimizer step `step`, which is None in validation."""
        raise NotImplementedError

    def after_step(self, networks: Sequence[Any], seed: int, step: int) -> None:
        """Called once optimizer step `step` is done, with what trains and its averages."""

    def validated(self) -> dict[str, float]:
        """Figures of all validation batches since the last call, on all processes. All of them call it."""
        return {}

    def note(self, vae: Any) -> str:
        """A line about the term's weight, printed before training."""
        raise NotImplementedError

    def quality(self, metrics: Mapping[str, Tensor]) -> list[str]:
        """Lines about the latents, by the figures of the last validation."""
        raise NotImplementedError


class KLTerm(Regularizer):
    """beta KL(q(z | x) || N(0, I)), the mean over latent elements. Over the first `warmup_steps` beta rises from 0."""

    def __init__(self, beta: float, warmup_steps: int = 0):
        super().__init__()
        self.beta, self.warmup_steps = beta, warmup_steps

    def forward(self, network: Any, posterior: Gaussian, mean: Mean, step: int | None) -> tuple[Tensor, Figures]:
        """The term, and the KL in nats an element, in validation of each channel too."""
        kl = posterior.kl()  # (B, C, h, w)
        figures = {"kl": mean(kl)}
        if step is None:
            figures |= {f"kl_channel_{i}": value for i, value in enumerate(kl.mean((0, 2, 3)))}
        return self.beta_at(step) * figures["kl"], figures

    def beta_at(self, step: int | None) -> float:
        """Beta at this step of training; in validation the full beta."""
        if step is None or not self.warmup_steps:
            return self.beta
        return self.beta * min(1.0, (step + 1) / self.warmup_steps)

    def note(self, vae: Any) -> str:
        """A line that gives this beta in other conventions."""
        return equivalents(self.beta, vae)

    def quality(self, metrics: Mapping[str, Tensor]) -> list[str]:
        """Lines with the KL of each channel, and the channels that carry no information."""
        names = sorted((n for n in metrics if n.startswith("val/kl_channel_")), key=lambda n: int(n.rpartition("_")[2]))
        kl = [float(metrics[name]) for name in names]
        lines = ["KL of each latent channel in nats an element: " + " ".join(f"{value:.3f}" for value in kl)]
        if dead := [i for i, value in enumerate(kl) if value < 0.01]:
            lines.append(
                f"channels {dead} carry no information (KL below 0.01): beta is too high for this many latent_channels"
            )
        return lines


class CodebookTerms(Regularizer):
    """weight (|sg(z) - e|^2 + commitment |z - sg(e)|^2), the means over latent elements, where e is the code of z.

    van den Oord et al. 2017, eq. 3: the first term moves the codes to the latents, the second one the latents to the
    codes; sg stops the gradient. LDM has a weight of 1 and a commitment of 0.25.

    `used` is the moving average of the share of positions that each code gets. A code for which it falls below
    `revive_below` of the mean, 1 / K, moves to a latent of the batch, chosen with a probability proportional to its
    squared distance from its code, as k-means++ does (Arthur and Vassilvitskii 2007; the restarts are those of Dhariwal
    et al. 2020, Jukebox). `grace` keeps codes that are new from being counted as dead before they could be used.
    """

    used: Tensor
    grace: Tensor

    def __init__(self, codes: int, weight: float = 1.0, commitment: float = 0.25, revive_below: float = LEAST_USE):
        super().__init__()
        if weight <= 0 or commitment < 0 or not 0 <= revive_below < 1:
            raise UserError(
                f"codebook: weight={weight:g}, commitment={commitment:g}, revive_below={revive_below:g}: give a weight "
                "above 0, a commitment of at least 0, and a share from 0 (never) to below 1."
            )
        self.weight, self.commitment, self.revive_below = weight, commitment, revive_below
        self.register_buffer("used", torch.zeros(codes))
        self.register_buffer("grace", torch.full((codes,), 1 / codes))
        self._last: tuple[Tensor, Tensor] | None = None  # latents (N, z) and their distances (N,)
        self._counts: Tensor | None = None  # (K,) of validation

    def forward(self, network: Any, posterior: Gaussian, mean: Mean, step: int | None) -> tuple[Tensor, Figures]:
        """The terms; the mean squared distance of latents from their codes; and in training how codes are used."""
        z = posterior.mean
        indices = network.indices(z)
        codes = network.quantize.vectors(indices).float()
        commitment = mean((z - codes.detach()).square())
        loss = self.weight * (mean((codes - z.detach()).square()) + self.commitment * commitment)
        figures = {"commitment": commitment}
        counts = torch.bincount(indices.flatten(), minlength=len(self.used))
        if step is None:
            self._counts = counts if self._counts is None else self._counts + counts
        else:
            distances = (z - codes).detach().square().sum(1).flatten()
            self._last = z.detach().movedim(1, -1).flatten(0, 2), distances
            self._count(counts)
            figures |= dict(zip(("codebook_use", "perplexity"), codebook_use(self.used, LEAST_USE), strict=True))
        return loss, figures

    def _count(self, counts: Tensor) -> None:
        share = _summed(counts.float())
        self.used.mul_(MEMORY).add_(share / share.sum(), alpha=1 - MEMORY)
        self.grace.mul_(MEMORY)

    @torch.no_grad()
    def after_step(self, networks: Sequence[Any], seed: int, step: int) -> None:
        """Moves dead codes, in the averages too, where they would take long to arrive. The host waits for nothing."""
        if not self.revive_below or self._last is None or step % REVIVES_EVERY:
            return
        rows, distances = (_joined(part) for part in self._last)
        ends = distances.cumsum(0)
        level = uniform(seed, "revive", torch.tensor([step]), (len(self.used),))[0].to(ends) * ends[-1]
        fresh = rows[torch.searchsorted(ends, level).clamp(max=len(rows) - 1)]  # (K, z)
        dead = (self.used + self.grace < self.revive_below / len(self.used)) & ends[-1].isfinite()
        for network in networks:
            codes = network.quantize.embedding.weight
            codes.copy_(torch.where(dead[:, None], fresh.to(codes), codes))
        self.grace.copy_(torch.where(dead, 1 / len(self.used), self.grace))

    def validated(self) -> dict[str, float]:
        """The share of codes that validation images use, and the codes' perplexity: how many equally used codes have
        the same entropy."""
        counts, self._counts = self._counts, None
        if counts is None:
            return {}
        use, perplexity = codebook_use(_summed(counts.float()))
        return {"codebook_use": float(use), "perplexity": float(perplexity)}

    def note(self, vae: Any) -> str:
        """A line with the weights of the terms. It also says that beta has no effect."""
        return (
            f"a codebook of {len(self.used)} codes bounds the latents: codebook.weight={self.weight:g}, "
            f"codebook.commitment={self.commitment:g}; beta, the weight of a KL term, isn't used"
        )

    def quality(self, metrics: Mapping[str, Tensor]) -> list[str]:
        """How many codes the validation images use."""
        use, perplexity = (float(metrics[f"val/{name}"]) for name in ("codebook_use", "perplexity"))
        line = f"{use:.1%} of the {len(self.used)} codes are used, with a perplexity of {perplexity:.0f}"
        poor = "; most stay unused: take fewer vae.codes, or train longer"
        return [line + (poor if use < 0.1 else "")]


class Unregularized(Regularizer):
    """No term: nothing but the reconstruction bounds the latents, as in TAESD."""

    def forward(self, network: Any, posterior: Gaussian, mean: Mean, step: int | None) -> tuple[Tensor, Figures]:
        """0 and no figures."""
        return posterior.mean.new_zeros(()), {}

    def note(self, vae: Any) -> str:
        """A line that says that beta has no effect."""
        return f"nothing bounds the latents of {type(vae).__name__}: beta, the weight of a KL term, isn't used"

    def quality(self, metrics: Mapping[str, Tensor]) -> list[str]:
        """No lines."""
        return []


def regularizer_of(
    vae: Autoencoder, beta: float, warmup_steps: int = 0, codebook: Mapping[str, Any] | None = None
) -> Regularizer:
    """The regularizer of the kind of `vae`; `codebook` are options of `CodebookTerms`."""
    if vae.REGULARIZER == "codebook":
        codes: Any = vae.quantize
        return CodebookTerms(len(codes.embedding.weight), **(codebook or {}))
    return KLTerm(beta, warmup_steps) if vae.REGULARIZER == "kl" else Unregularized()


def check_codebook(options: Mapping[str, Any], vae: Autoencoder) -> None:
    """Raises UserError for options of a codebook where there is none."""
    usual = CodebookTerms.__init__.__defaults__ or ()
    changed = [key for key, value in zip(("weight", "commitment", "revive_below"), usual, strict=True)
               if options.get(key, value) != value]  # fmt: skip
    if changed and vae.REGULARIZER != "codebook":
        raise UserError(
            f"codebook.{changed[0]}={options[changed[0]]:g}: {type(vae).__name__} has no codebook; leave it out, or "
            "use vae=vq_f4 or vae=vq_small."
        )


def equivalents(beta: float, vae: Any) -> str:
    """A line that gives this beta in other conventions.

    A position of the z latent channels stands for C f^2 pixel values. LDM's kl_weight, which multiplies sums, is
    beta C f^2 / z. If the MSE is read as a log-likelihood, the decoder has the standard deviation sqrt(beta C f^2 / (2
    z)).
    """
    ratio = vae.in_channels * vae.factor**2 / vae.latent_channels
    return (
        f"beta {beta:g} weights the mean KL per latent element against the mean squared error per pixel value; "
        f"that equals a kl_weight of {beta * ratio:.3g} where both are summed (LDM's convention), "
        f"and a decoder with standard deviation {math.sqrt(beta * ratio / 2):.3g} (evidence lower bound)"
    )


def codebook_use(counts: Tensor, least: float = 0.0) -> tuple[Tensor, Tensor]:
    """From the counts (K,) of codes: the share of codes with more than `least` times the mean count, and
    exp(entropy)."""
    share = counts / counts.sum()
    return (share > least / len(share)).float().mean(), torch.special.entr(share).sum().exp()


def _summed(counts: Tensor) -> Tensor:
    """The sum over all processes, which all call it."""
    if distributed.is_initialized():
        distributed.all_reduce(counts)
    return counts


def _joined(rows: Tensor) -> Tensor:
    """The rows of all processes, one after the other: in the order of the samples, as a single process has them."""
    if not distributed.is_initialized():
        return rows
    parts = [torch.empty_like(rows) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, rows.contiguous())
    return torch.cat(parts)
