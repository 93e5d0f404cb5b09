"""Measures a diffusion model: images of validation's conditions against real ones, over several seeds."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm.common.devices import device_of, send
from ldm.common.errors import UserError
from ldm.common.randomness import permutation
from ldm.data.storage.table import Table
from ldm.evaluation.curves import Curves
from ldm.evaluation.generated import chosen_options, example_conditions, generate_set
from ldm.evaluation.legal_report import generated_figures
from ldm.evaluation.measures.features import Features
from ldm.evaluation.measures.image_set import ImageSet, from_bytes, refuse_unlike
from ldm.evaluation.measures.nearest import neighbours
from ldm.evaluation.probe import label_codes, probe_figures
from ldm.evaluation.report import HtmlReport, spread
from ldm.evaluation.scoring import LEAST, K, NetworkCalls, comparability, over_seeds, score
from ldm.model.latent_diffusion import LatentDiffusion
from ldm.training.ldm_task import diffusion_loss
from ldm.training.trainer.fit import cache_of

MOST_LOSSES = 2000  # validation images whose loss is taken
SHOWN = 64


@torch.inference_mode()
def measure(
    model: LatentDiffusion,
    tables: tuple[Table, Table],
    reference: ImageSet,
    features: Features,
    config: Mapping[str, Any],
    report: HtmlReport,
    source: object = None,
) -> dict[str, Any]:
    """The figures of n images for each seed against `reference`; fills the report. `source` is the source of the data.

    Raises UserError if there are too few images to measure a distance.
    """
    train, val = tables
    n, seeds = config["n"], list(range(config["seed"], config["seed"] + config["seeds"]))
    if n < LEAST or not seeds:
        raise UserError(f"n={n} and seeds={len(seeds)}: a distance needs at least {LEAST} images and one seed.")
    rows = np.resize(permutation(config["seed"], 0, len(val)), n)
    conditions = example_conditions(model, val, rows, config["seed"])
    with NetworkCalls(model.denoiser.network) as count:
        sets = [generate_set(model, conditions, n, seed=n * seed, config=config) for seed in seeds]
    refuse_unlike(sets[0], reference)
    real = features.of(reference, cache_of(config))
    found = [features.of(one) for one in sets]
    each = [score(one, real, features) for one in found]
    evaluations, guided = count.per_image(n * len(seeds), len(seeds) * -(-n // config["batch_size"]))
    figures: dict[str, Any] = {
        "pictures a seed": n,
        "seeds": seeds,
        "reference": reference.what,
        "reference images": len(reference),
        "network evaluations per image": evaluations,
        "guided steps": guided,
        "validation loss": validation_loss(model, val, config),
        **over_seeds(each),
    }
    floor = ImageSet.of_table(train, np.sort(permutation(1, 0, train.originals)[:n]), "training images")
    figures["as many training images"] = score(features.of(floor, cache_of(config)), real, features)
    figures |= memorisation(sets[0], train, val, report=report, device=device_of(model))
    labels, cache = label_codes(train, val, rows), cache_of(config)
    figures |= probe_figures(found, labels, tables=tables, features=features, cache=cache, most=config["reference_n"])
    summary = {**model.sampling, **chosen_options(config)}
    _fill(report, figures, sets[0], features=features, sampling=summary)
    images = [one.images for one in sets]
    figures |= generated_figures(source, images, conditions=conditions, table=val, rows=rows, report=report)
    curves = Curves(model, conditions, real=real, features=features, config=config).measure(report)
    return figures | curves | {"sampling": summary} | comparability(features, reference)


def validation_loss(model: LatentDiffusion, val: Table, config: Mapping[str, Any]) -> float:
    """The mean of the training loss over validation images, with noise that is a function of (seed + 1, row)."""
    here, seed, losses = model.latent_mean.device, config["seed"] + 1, []
    rows = np.arange(min(len(val), MOST_LOSSES))
    for some in np.array_split(rows, -(-len(rows) // config["batch_size"])):
        batch = val.batch(some, ("image", *model.conditioner.needs)) | {"position": torch.from_numpy(some)}
        batch = {key: send(value, here) if isinstance(value, Tensor) else value for key, value in batch.items()}
        latents = model.encode(batch["image"])
        cond = model.conditioner(model.conditioner.prepare(batch, model.encode, seed))
        losses.append(diffusion_loss(model.denoiser, cond, latents, seed=seed, position=batch["position"]))
    return float(torch.cat(losses).mean())


def memorisation(
    generated: ImageSet, train: Table, val: Table, *, report: HtmlReport, device: torch.device | str = "cpu"
) -> dict[str, Any]:
    """The share of images that are copies of training images, and the share of held-out real images that would count as
    copies."""
    images = from_bytes(generated.images)
    near = neighbours(images, train, device=device)
    held = val.batch(np.sort(permutation(0, 0, len(val))[: len(generated)]), ["image"])["image"]
    real = neighbours(held, train, device=device)
    report.heading("Nearest training images")
    order = near.first.argsort()[:16]
    beside = torch.stack([images[order], train.batch(near.row[order].numpy(), ["image"])["image"]], 1)
    caption = "The images nearest to training images, each beside its nearest (by pixels)."
    report.images("nearest", beside.flatten(0, 1), 8, caption)
    return {
        "memorisation rate": float(near.memorised.float().mean()),
        "the same of held-out real images": float(real.memorised.float().mean()),
        "RMS distance to the nearest training image": float(near.first.mean()),
        "the same distance of held-out real images": float(real.first.mean()),
    }


def _fill(
    report: HtmlReport,
    figures: Mapping[str, Any],
    generated: ImageSet,
    *,
    features: Features,
    sampling: Mapping[str, Any],
) -> None:
    shown = {k: v for k, v in figures.items() if k not in ("seeds", "as many training images")}
    report.heading("Figures")
    report.table(shown)
    report.say("±: standard deviation over the seeds. Conditions are those of randomly chosen validation rows.", "note")
    report.say(f"Features: {features.name}. {features.note}.", "note")
    report.say(f"Precision and recall use the {K} nearest neighbours in the same features.", "note")
    report.say(f"Sampling: {', '.join(f'{k} {v}' for k, v in sampling.items())}.", "note")
    report.heading("The score of equally many real training images")
    report.table(figures["as many training images"])
    report.heading("Images")
    report.images(
        "samples", from_bytes(generated.images[:SHOWN]), 16, "The first images of the first seed, not selected."
    )


def score_set(
    images: ImageSet,
    reference: ImageSet,
    train: Table | None,
    features: Features,
    *,
    config: Mapping[str, Any],
    report: HtmlReport,
) -> dict[str, Any]:
    """The figures of a set of images that another program may have made. As there is only one set, the spread is over
    its halves."""
    refuse_unlike(images, reference)
    real, found = features.of(reference, cache_of(config)), features.of(images, cache_of(config))
    figures: dict[str, Any] = {
        "samples": images.what,
        "pictures": len(images),
        "reference": reference.what,
        "reference images": len(reference),
        **score(found, real, features),
    }
    if len(found) >= 4 * LEAST:
        halves = [score(found[i::2], real, features)[features.frechet_name] for i in (0, 1)]
        figures[f"{features.frechet_name} of each half"] = spread(halves)
    if train is not None:
        near = neighbours(from_bytes(images.images), train, device=features.device)
        figures["memorisation rate"] = float(near.memorised.float().mean())
        figures["RMS distance to the nearest training image"] = float(near.first.mean())
    report.heading("Figures")
    report.table(figures)
    report.say(f"Features: {features.name}. {features.note}.", "note")
    report.images("samples", from_bytes(images.images[:SHOWN]), 16, "The first images.")
    report.images("reference", from_bytes(reference.images[:SHOWN]), 16, "The first of the reference.")
    return figures | comparability(features, reference)
