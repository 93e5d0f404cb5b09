"""Measures an autoencoder: its reconstructions, its latents, and whether stage two should start on them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm.common.devices import device_of, send, to_host
from ldm.common.errors import UserError
from ldm.common.randomness import permutation
from ldm.common.registry import spec_of
from ldm.data.storage.table import Table
from ldm.evaluation.legal_report import reconstructed_figures
from ldm.evaluation.measures.distances import frechet_distance, kernel_distance
from ldm.evaluation.measures.features import Features
from ldm.evaluation.measures.image_set import ImageSet, from_bytes, refuse_unlike, to_bytes
from ldm.evaluation.measures.latent_statistics import LatentStatistics, latent_statistics
from ldm.evaluation.measures.perceptual import open_lpips, ssim
from ldm.evaluation.report import HtmlReport, new_figure
from ldm.evaluation.scoring import comparability
from ldm.evaluation.verdict import Verdict, collapsed_channels, judge
from ldm.images import Preprocess
from ldm.model.generate import sample_prior
from ldm.networks import Autoencoder, Gaussian
from ldm.networks.computing.finite import is_finite
from ldm.training.regularizers import codebook_use
from ldm.training.trainer.fit import cache_of
from ldm.training.vae_task import psnr

SHOWN = 24
_PRIORS = ("Decoded from z ~ N(0, 1)", "Decoded from random codes")


@torch.inference_mode()
def measure(
    vae: Autoencoder,
    val: Table,
    features: Features,
    config: Mapping[str, Any],
    report: HtmlReport,
    beta: float | None = None,
    source: object = None,
) -> dict[str, Any]:
    """The figures of validation images, at most reference_n and always the same ones; fills the report.

    `beta` is the weight of the KL term that the autoencoder was trained with, if it is known; `source` is the source of
    the data.
    """
    rows = np.sort(permutation(0, 0, len(val))[: config["reference_n"]])
    real = ImageSet.of_table(val, rows, f"{len(rows)} validation images")
    found = _reconstruct(vae, val, rows, config)
    latents = latent_statistics(found.posteriors)
    mean_image_db = float(psnr(found.variance.clamp(min=0).mean()))
    db = float(psnr(found.errors.mean()))
    codebook = {} if found.codes is None else codebook_figures(found.codes)
    verdict = judge(latents, db, mean_image_db, beta, codebook_use=codebook.get("codebook use"))
    preprocess: Preprocess = getattr(vae, "preprocess", None) or val.preprocess
    decoded = ImageSet(found.decoded, spec_of(preprocess), "their reconstructions")
    refuse_unlike(decoded, real)
    a, b = features.of(decoded), features.of(real, cache_of(config))
    figures: dict[str, Any] = {
        "images": len(rows),
        "PSNR in dB": db,
        "PSNR of the mean image in dB": mean_image_db,
        "SSIM": float(found.ssim.mean()),
        "LPIPS": float(found.lpips.mean()) if found.lpips is not None else found.lpips_note,
        f"reconstruction {features.frechet_name}": frechet_distance(a, b),
        f"reconstruction {features.kernel_name}": kernel_distance(a, b),
    }
    if latents.kl is not None:
        figures["KL in nats per image"] = float(latents.kl.sum()) * _positions(found.posteriors[0])
    figures |= codebook | latent_figures(latents)
    _fill(report, figures, verdict, features=features, latents=latents)
    figures |= reconstructed_figures(source, found.decoded, table=val, rows=rows, report=report)
    _show(report, vae, real, found=found, config=config)
    findings = [vars(finding) for finding in verdict.findings]
    return figures | {"verdict": str(verdict), "findings": findings} | comparability(features, real)


def codebook_figures(counts: Tensor) -> dict[str, float]:
    """By the counts (K,) of codes: the share that is used at all, and the perplexity."""
    use, perplexity = codebook_use(counts.double())
    return {"codebook use": float(use), "codebook perplexity": float(perplexity)}


def latent_figures(latents: LatentStatistics) -> dict[str, Any]:
    """The statistics by name; those of "each channel" are lists."""
    kl = {} if latents.kl is None else {"KL of each latent channel in nats": latents.kl.tolist()}
    return kl | {
        "active units": float(latents.active.mean()),
        "active units of each channel": latents.active.tolist(),
        "collapsed channels": collapsed_channels(latents),
        "mean of each channel": latents.mean.tolist(),
        "std of each channel": latents.std.tolist(),
        "posterior std of each channel": latents.posterior_std.tolist(),
        "range": [float(latents.low.min()), float(latents.high.max())],
        "autocorrelation at 1, 2, ... places": latents.autocorrelation.tolist(),
    }


class _Reconstructions:
    """What was measured on N images: `decoded` (N, C, H, W) uint8, mean squared `errors`, `ssim` and `lpips` (N,), and
    the images' own `variance` at each pixel (C, H, W); with a codebook, how often each of its `codes` (K,) was used."""

    def __init__(self) -> None:
        self.posteriors: list[Gaussian] = []
        self.decoded, self.errors, self.ssim = torch.empty(0), torch.empty(0), torch.empty(0)
        self.variance = torch.empty(0)
        self.lpips: Tensor | None = None
        self.codes: Tensor | None = None
        self.lpips_note = ""


def _reconstruct(vae: Autoencoder, val: Table, rows: np.ndarray, config: Mapping[str, Any]) -> _Reconstructions:
    device = device_of(vae)
    found = _Reconstructions()
    lpips, found.lpips_note = open_lpips(config["lpips"], str(device))
    parts: list[list[Tensor]] = []
    first = second = torch.zeros((), dtype=torch.float64)
    for batch in np.array_split(rows, -(-len(rows) // config["batch_size"])):
        read = val.batch(batch, ["image"])["image"]
        images = send(read, device)
        posterior = vae.encode(images)
        decoded = _decoded(vae, posterior.mode()).clamp(-1, 1)
        measured = [to_bytes(decoded), (decoded - images).square().flatten(1).mean(1), ssim(decoded, images)]
        if lpips:
            measured.append(lpips(decoded, images))
        mean, std, *figures = to_host(posterior.mean, posterior.std, *measured)
        found.posteriors.append(Gaussian(mean, std))
        found.codes = _counted(vae, posterior, found.codes)
        parts.append(figures)
        values = read.double()
        first, second = first + values.sum(0), second + values.square().sum(0)
    found.decoded, found.errors, found.ssim, *perceptual = map(torch.cat, zip(*parts, strict=True))
    found.lpips = perceptual[0] if perceptual else None
    found.variance = second / len(rows) - (first / len(rows)).square()
    return found


def _counted(vae: Any, posterior: Gaussian, before: Tensor | None) -> Tensor | None:
    """How often each code (K,) is used by `posterior` and `before`; None without a codebook."""
    if vae.REGULARIZER != "codebook":
        return None
    counts = torch.bincount(vae.indices(posterior.mean).flatten(), minlength=len(vae.quantize.embedding.weight)).cpu()
    return counts if before is None else before + counts


def _decoded(vae: Autoencoder, latents: Tensor) -> Tensor:
    """The decoded images. Raises UserError if only these aren't finite; the verdict reports latents that aren't."""
    images = vae.decode(latents)
    if is_finite(latents) and not is_finite(images):
        raise UserError(
            "the autoencoder's reconstructions hold infinite values or NaN, so nothing can be "
            "measured: take another checkpoint, or train again with a lower optimizer.lr."
        )
    return images


def _fill(
    report: HtmlReport,
    figures: Mapping[str, Any],
    verdict: Verdict,
    *,
    features: Features,
    latents: LatentStatistics,
) -> None:
    report.say(f"verdict: {verdict}", "pass" if verdict.passes else "fail")
    for finding in verdict.findings:
        report.say(f"{finding.name}: {finding.text}. Advice: {finding.advice}.", "fail" if finding.fails else "note")
    report.heading("Reconstruction")
    report.table({name: value for name, value in figures.items() if not isinstance(value, list)})
    report.say(
        f"Features: {features.name}. {features.note}. Reconstructions are decoded from the posterior's mean "
        "and rounded to 8 bits.",
        "note",
    )
    report.heading("Latents")
    columns = {"active units": latents.active, "mean": latents.mean, "std": latents.std}
    if latents.kl is not None:
        columns = {"KL in nats": latents.kl, **columns, "posterior std": latents.posterior_std}
    columns |= {"least": latents.low, "greatest": latents.high}
    rows = [[i, *(float(column[i]) for column in columns.values())] for i in range(latents.channels)]
    report.rows(["channel", *columns], rows)
    figure = new_figure()
    axes = figure.add_subplot()
    axes.plot([0, *range(1, len(latents.autocorrelation) + 1)], [1.0, *latents.autocorrelation.tolist()], marker="o")
    axes.axhline(0, color="grey", linewidth=0.8)
    axes.set_xlabel("distance in positions")
    axes.set_ylabel("correlation")
    caption = (
        "Autocorrelation of the latents: near 1 they are smooth; near 0 their positions are independent, as in noise."
    )
    report.plot("autocorrelation", figure, caption)


def _show(
    report: HtmlReport, vae: Autoencoder, real: ImageSet, *, found: _Reconstructions, config: Mapping[str, Any]
) -> None:
    def pairs(rows: Tensor) -> Tensor:
        """Each original of `rows` (N,) followed by its reconstruction: (2N, C, H, W) in [-1, 1]."""
        return from_bytes(torch.stack([real.images[rows], found.decoded[rows]], 1).flatten(0, 1))  # (2N, C, H, W)

    report.heading("Images")
    some = torch.arange(min(SHOWN, len(real)))
    report.images("reconstructions", pairs(some), 8, "Images, each beside its reconstruction.")
    worst = found.errors.argsort(descending=True)[:8]
    report.images("worst", pairs(worst), 8, "The worst reconstructions.")
    z = found.posteriors[0].mean[:8]  # (8, C, h, w)
    scaled = (z / (3 * z.std((0, 2, 3), keepdim=True).clamp(min=1e-6))).clamp(-1, 1)
    caption = "Latents of the first images, channel by channel."
    report.images("latents", scaled.flatten(0, 1)[:, None], z.shape[1], caption)
    height, width = real.images.shape[2:]
    try:
        prior = sample_prior(vae, 16, (height, width), seed=config["seed"], batch_size=config["batch_size"]).cpu()
    except UserError as error:  # the figures don't need it
        report.say(f"no images decoded from the prior: {error}", "note")
        return
    report.images(
        "prior",
        prior,
        8,
        f"{_PRIORS[vae.REGULARIZER == 'codebook']}: a first stage isn't expected to give images of anything.",
    )


def _positions(posterior: Gaussian) -> int:
    return posterior.mean.shape[2] * posterior.mean.shape[3]
