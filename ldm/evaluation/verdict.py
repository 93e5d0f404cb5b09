"""Whether stage two should start on an autoencoder: what is wrong with its latents, and what to do about it."""

from dataclasses import dataclass

from torch import Tensor

from ldm.evaluation.measures.latent_statistics import LatentStatistics

COLLAPSED_KL = 0.02  # nats of an element, which then carries almost no information
COLLAPSED_SHARE = 0.05  # of a channel's elements that are active
MOST_STD, MOST_EXTREME, MOST_OUTLIER = 20.0, 200.0, 50.0
MOST_KL = 60.0  # nats of an element; Stable Diffusion's have about 20
MOST_PRECISION = 1e5  # spread of the latents over that of their posteriors
LEAST_CODES = 0.1  # of a codebook that are used
LEAST_GAIN_DB, COARSE_DB = 1.0, 20.0


@dataclass(frozen=True)
class Finding:
    """A problem's `name`, its measurement as `text`, and `advice`. If it `fails`, stage two shouldn't start."""

    name: str
    text: str
    advice: str
    fails: bool


@dataclass(frozen=True)
class Verdict:
    """What was found about an autoencoder's latents."""

    findings: tuple[Finding, ...]

    @property
    def passes(self) -> bool:
        """Whether stage two can start."""
        return not any(finding.fails for finding in self.findings)

    def __str__(self) -> str:
        """One line: `pass` with the names of other findings, or `fail` with the names of the problems."""
        names = [finding.name for finding in self.findings if finding.fails or self.passes]
        if self.passes:
            noted = f", with notes: {', '.join(names)}" if names else ""
            return f"pass: stage two can start{noted}"
        return f"fail: {', '.join(names)}; fix the autoencoder before stage two"


def judge(
    latents: LatentStatistics,
    psnr_db: float,
    mean_image_db: float,
    beta: float | None = None,
    codebook_use: float | None = None,
) -> Verdict:
    """The verdict from the latents, the reconstruction's PSNR and that of always answering the mean image, in dB, and
    the KL term's weight `beta` where it is known. With a codebook, `codebook_use` is the share of its codes in use."""
    checks = [_not_finite(latents), _collapse(latents)]
    if latents.kl is not None:
        checks += [_unbounded(latents, latents.kl) or _without_kl(latents, beta), _precise(latents, latents.kl)]
    checks += [_unused(codebook_use), _useless(psnr_db, mean_image_db), _coarse(psnr_db)]
    return Verdict(tuple(finding for finding in checks if finding))


def collapsed_channels(latents: LatentStatistics) -> list[int]:
    """The channels that carry no information about the image."""
    silent = latents.active < COLLAPSED_SHARE
    if latents.kl is not None:
        silent |= latents.kl < COLLAPSED_KL
    return [i for i in range(latents.channels) if silent[i]]


def _not_finite(latents: LatentStatistics) -> Finding | None:
    if latents.finite:
        return None
    return Finding(
        "latents that aren't finite",
        "some posterior means or stds are infinite or NaN",
        "train again with a lower optimizer.lr, or trainer.precision=32-true",
        True,
    )


def _collapse(latents: LatentStatistics) -> Finding | None:
    """Posterior collapse: q(z | x) is the prior whatever x is."""
    silent = collapsed_channels(latents)
    if not silent:
        return None
    every = latents.channels
    which = "every channel" if len(silent) == every else f"{len(silent)} of {every} channels ({_listed(silent)})"
    return Finding(
        "posterior collapse",
        f"{which}: the posterior is the prior, whatever the image (KL below {COLLAPSED_KL} nats an element, or fewer "
        f"than {COLLAPSED_SHARE:.0%} active units)",
        "take a smaller beta (a tenth, say), or fewer vae.latent_channels if only some have collapsed",
        2 * len(silent) >= every,
    )


def _unused(codebook_use: float | None) -> Finding | None:
    if codebook_use is None or codebook_use >= LEAST_CODES:
        return None
    return Finding(
        "codebook collapse",
        f"{codebook_use:.1%} of the codes are used",
        "take fewer vae.codes, or train longer with a codebook.revive_below above 0",
        False,
    )


def _unbounded(latents: LatentStatistics, channel_kl: Tensor) -> Finding | None:
    """Latents far beyond the prior, because nothing bounded them."""
    std, extreme = float(latents.std.max()), latents.extreme
    outlier = float((_reach(latents) / latents.std.clamp(min=1e-12)).max())
    kl = float(channel_kl.max())
    found = []
    if std > MOST_STD:
        found.append(f"a channel has std {std:.3g} where the prior's is 1")
    if extreme > MOST_EXTREME:
        found.append(f"values reach {extreme:.3g}")
    if outlier > MOST_OUTLIER:
        found.append(f"single values lie {outlier:.0f} stds from their channel's mean")
    if kl > MOST_KL:
        found.append(f"a channel's KL is {kl:.3g} nats an element")
    if not found:
        return None
    return Finding(
        "unbounded latents",
        "; ".join(found),
        "take a larger beta (ten times, or 1e-4 if it is 0) and train again: only the KL term bounds the latents",
        True,
    )


def _without_kl(latents: LatentStatistics, beta: float | None) -> Finding | None:
    """No KL term at all, although the latents may still look fine when they are measured."""
    if beta is None or beta > 0:
        return None
    std, width = float(latents.std.max()), float(latents.posterior_std.min())
    return Finding(
        "unbounded latents",
        f"trained with beta=0: nothing bounds the latents (std {std:.3g} so far, posteriors of {width:.2g}), and the "
        "longer it trains, the larger they become",
        "train with a beta above 0: 1e-4, say",
        False,
    )


def _precise(latents: LatentStatistics, channel_kl: Tensor) -> Finding | None:
    """Posteriors so narrow that only the length of training bounds the precision that the decoder relies on."""
    ratio = float((latents.std / latents.posterior_std.clamp(min=1e-30)).max())
    if ratio <= MOST_PRECISION or float(channel_kl.max()) > MOST_KL:
        return None
    return Finding(
        "unbounded precision",
        f"posteriors are {ratio:.2g} times narrower than the latents' spread: the KL weight is near 0 and the decoder "
        "may depend on details that stage two can't match",
        "take a larger beta if samples look worse than reconstructions",
        False,
    )


def _useless(psnr_db: float, mean_image_db: float) -> Finding | None:
    if psnr_db >= mean_image_db + LEAST_GAIN_DB:
        return None
    return Finding(
        "a decoder that ignores its latents",
        f"the reconstruction has {psnr_db:.1f} dB PSNR, the mean image alone {mean_image_db:.1f}",
        "train longer, or use a smaller beta",
        True,
    )


def _coarse(psnr_db: float) -> Finding | None:
    if psnr_db >= COARSE_DB:
        return None
    return Finding(
        "coarse reconstruction",
        f"{psnr_db:.1f} dB PSNR: no sample of stage two can be sharper",
        "train longer, or take more vae.latent_channels or a smaller factor",
        False,
    )


def _reach(latents: LatentStatistics):
    """The greatest distance of any value from the mean of its channel, (C,)."""
    return (latents.high - latents.mean).maximum(latents.mean - latents.low)


def _listed(channels: list[int]) -> str:
    shown = ", ".join(map(str, channels[:8]))
    return shown + (", ..." if len(channels) > 8 else "")
