"""A diffusion model measured: pictures of validation's conditions against real ones, over several seeds."""

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
from ldm.evaluation.generated import chosen_options, conditions, draw
from ldm.evaluation.legal_report import generated_figures
from ldm.evaluation.measures.features import Features
from ldm.evaluation.measures.image_set import Pictures, from_bytes, refuse_unlike
from ldm.evaluation.measures.nearest import neighbours
from ldm.evaluation.probe import label_codes, probe_figures
from ldm.evaluation.report import Report, spread
from ldm.evaluation.scoring import LEAST, K, NetworkCalls, over_seeds, score
from ldm.model.latent_diffusion import LatentDiffusion
from ldm.training.ldm_task import diffusion_loss
from ldm.training.trainer.fit import cache_of

MOST_LOSSES = 2000  # validation images whose loss is taken
SHOWN = 64


@torch.inference_mode()
def measure(
    model: LatentDiffusion,
    tables: tuple[Table, Table],
    reference: Pictures,
    features: Features,
    config: Mapping[str, Any],
    report: Report,
    source: object = None,
) -> dict[str, Any]:
    """The figures of `seeds` times n pictures against `reference`, with the report filled; `source` is what made the
    data."""
    train, val = tables
    n, seeds = config["n"], list(range(config["seed"], config["seed"] + config["seeds"]))
    if n < LEAST or not seeds:
        raise UserError(f"n={n} and seeds={len(seeds)}: a distance needs at least {LEAST} pictures and one seed.")
    rows = np.resize(permutation(config["seed"], 0, len(val)), n)
    given = conditions(model, val, rows, config["seed"])
    with NetworkCalls(model.denoiser.network) as count:
        drawn = [draw(model, given, n, n * seed, config) for seed in seeds]
    refuse_unlike(drawn[0], reference)
    real = features.of(reference, cache_of(config))
    found = [features.of(one) for one in drawn]
    each = [score(one, real, features) for one in found]
    evaluations, guided = count.per_picture(n * len(seeds), len(seeds) * -(-n // config["batch_size"]))
    figures: dict[str, Any] = {
        "pictures a seed": n,
        "seeds": seeds,
        "reference": reference.what,
        "reference images": len(reference),
        "network evaluations a picture": evaluations,
        "guided steps": guided,
        "validation loss": validation_loss(model, val, config),
        **over_seeds(each),
    }
    floor = Pictures.of_table(train, np.sort(permutation(1, 0, len(train))[:n]), "training images")
    figures["as many training images"] = score(features.of(floor, cache_of(config)), real, features)
    figures |= memorisation(drawn[0], train, val, report, device_of(model))
    labels = label_codes(train, val, rows)
    figures |= probe_figures(found, labels, (train, val), features, cache_of(config), config["reference_n"])
    summary = {**model.sampling, **chosen_options(config)}
    _fill(report, figures, drawn[0], features, summary)
    figures |= generated_figures(source, [one.images for one in drawn], given, val, rows, report)
    curves = Curves(model, given, real, features, config).measure(report)
    return figures | curves | {
        "sampling": summary,
        "features": {"name": features.name, "note": features.note, "weights": features.fingerprint},
        "prepared": dict(reference.prepared),
    }  # fmt: skip


def validation_loss(model: LatentDiffusion, val: Table, config: Mapping[str, Any]) -> float:
    """The mean of the training loss over validation images, on noise that (seed + 1, row) fixes."""
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
    drawn: Pictures, train: Table, val: Table, report: Report, device: torch.device | str = "cpu"
) -> dict[str, Any]:
    """How many pictures are copies of training images, beside how many held-out real images would count as such."""
    images = from_bytes(drawn.images)
    near = neighbours(images, train, device=device)
    held = val.batch(np.sort(permutation(0, 0, len(val))[: len(drawn)]), ["image"])["image"]
    real = neighbours(held, train, device=device)
    report.heading("Nearest training images")
    order = near.first.argsort()[:16]
    beside = torch.stack([images[order], train.batch(near.row[order].numpy(), ["image"])["image"]], 1)
    caption = "The pictures nearest to training images, each beside its nearest (by pixels)."
    report.pictures("nearest", beside.flatten(0, 1), 8, caption)
    return {
        "memorisation rate": float(near.memorised.float().mean()),
        "the same of held-out real images": float(real.memorised.float().mean()),
        "RMS distance to the nearest training image": float(near.first.mean()),
        "that of held-out real images": float(real.first.mean()),
    }


def _fill(
    report: Report, figures: Mapping[str, Any], drawn: Pictures, features: Features, sampling: Mapping[str, Any]
) -> None:
    shown = {k: v for k, v in figures.items() if k not in ("seeds", "as many training images")}
    report.heading("Figures")
    report.table(shown)
    report.say("±: standard deviation over the seeds. Conditions: those of validation rows drawn at random.", "note")
    report.say(f"Features: {features.name}. {features.note}.", "note")
    report.say(f"Precision and recall by the {K} nearest neighbours, in the same features.", "note")
    report.say(f"Sampling: {', '.join(f'{k} {v}' for k, v in sampling.items())}.", "note")
    report.heading("What as many real training images score")
    report.table(figures["as many training images"])
    report.heading("Pictures")
    report.pictures("samples", from_bytes(drawn.images[:SHOWN]), 16, "The first pictures of the first seed, unpicked.")


def score_set(
    drawn: Pictures,
    reference: Pictures,
    train: Table | None,
    features: Features,
    config: Mapping[str, Any],
    report: Report,
) -> dict[str, Any]:
    """The figures of pictures from elsewhere; their spread is over halves, for there is one set only."""
    refuse_unlike(drawn, reference)
    real, found = features.of(reference, cache_of(config)), features.of(drawn, cache_of(config))
    figures: dict[str, Any] = {
        "samples": drawn.what,
        "pictures": len(drawn),
        "reference": reference.what,
        "reference images": len(reference),
        **score(found, real, features),
    }
    if len(found) >= 4 * LEAST:
        halves = [frechet_distance_of(found[i::2], real, features) for i in (0, 1)]
        figures[f"{features.frechet_name} of each half"] = spread(halves)
    if train is not None:
        near = neighbours(from_bytes(drawn.images), train, device=features.device)
        figures["memorisation rate"] = float(near.memorised.float().mean())
        figures["RMS distance to the nearest training image"] = float(near.first.mean())
    report.heading("Figures")
    report.table(figures)
    report.say(f"Features: {features.name}. {features.note}.", "note")
    report.pictures("samples", from_bytes(drawn.images[:SHOWN]), 16, "The first pictures.")
    report.pictures("reference", from_bytes(reference.images[:SHOWN]), 16, "The first of the reference.")
    return figures | {
        "features": {"name": features.name, "note": features.note, "weights": features.fingerprint},
        "prepared": dict(reference.prepared),
    }


def frechet_distance_of(found: Tensor, real: Tensor, features: Features) -> float:
    return score(found, real, features)[features.frechet_name]
