"""Measures of generated images while a model trains: their distance to validation images, and the share of copies."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ldm.common.devices import device_of
from ldm.common.errors import UserError
from ldm.common.randomness import permutation
from ldm.data.storage.table import Table
from ldm.evaluation.generated import example_conditions, generate_set
from ldm.evaluation.measures.classifier import own_features
from ldm.evaluation.measures.distances import frechet_distance
from ldm.evaluation.measures.features import Features, open_features, random_features
from ldm.evaluation.measures.image_set import ImageSet, from_bytes
from ldm.evaluation.measures.nearest import neighbours
from ldm.evaluation.scoring import LEAST
from ldm.model.latent_diffusion import LatentDiffusion
from ldm.training.trainer.fit import cache_of, device_for

MOST_REAL = 1024  # validation images in the reference
MOST_TRAINING = 20_000  # training images that are searched for copies: each validation reads them all


class ImageDistance:
    """A function of a model: `fd`, the Frechet distance of `distance.n` generated images to validation images, and
    `memorised`, the share of them that are copies of training images.

    Conditions, noise and reference are the same at every call, so the figures of one run can be compared with each
    other. Figures with another n can't, since the distance falls as n grows. `memorised` is left out where there are
    more than MOST_TRAINING training images. `of_real` is the share of held-out real images that would count as copies.
    """

    def __init__(self, tables: tuple[Table, Table], config: Mapping[str, Any]):
        self.train, self.val = tables[0], _of_same_shape(tables[1], tables[0])
        options, self.seed = config["distance"], config["seed"]
        self.n, self.steps, self.batch_size = options["n"], options["steps"], config["batch_size"]
        if min(self.n, len(self.val)) < LEAST:
            raise UserError(
                f"val/fd compares {self.n} generated images with {len(self.val)} of validation, and needs at least "
                f"{LEAST} of each: hold out more with data.val_share=, or take checkpoint.best=val/loss."
            )
        order = permutation(self.seed, 0, len(self.val))
        self.rows = np.resize(order, self.n)
        self.features = _features(self.val, self.train, config)
        reference = ImageSet.of_table(self.val, np.sort(order[:MOST_REAL]), "validation images")
        self.real = self.features.of(reference, cache_of(config))
        self.reference = len(reference)
        self.watched = len(self.train) <= MOST_TRAINING
        self.of_real = self._copies(reference[: self.n], device_for(config)) if self.watched else 0.0

    def __str__(self) -> str:
        features = f"the Frechet distance of {self.n} generated images to {self.reference} of validation"
        more = "" if self.watched else f"; copies of more than {MOST_TRAINING} training images aren't searched for"
        return f"val/fd: {features}, on {self.features.name} ({self.features.note}){more}"

    @torch.inference_mode()
    def __call__(self, model: LatentDiffusion) -> dict[str, float]:
        """The figures of the model as it is."""
        generated = self._generate(model)
        figures = {"fd": frechet_distance(self.features(generated.images), self.real)}
        if self.watched:
            figures["memorised"] = self._copies(generated, device_of(model))
        return figures

    def _generate(self, model: LatentDiffusion) -> ImageSet:
        usual = model.sampling["steps"]
        options: dict[str, Any] = {"steps": self.steps, "spacing": None} if self.steps < usual else {}
        conditions = example_conditions(model, self.val, self.rows, self.seed)
        config = {"batch_size": self.batch_size}
        return generate_set(model, conditions, self.n, seed=self.seed, config=config, **options)

    def _copies(self, images: ImageSet, device: torch.device) -> float:
        near = neighbours(from_bytes(images.images), self.train, device=device)
        return float(near.memorised.float().mean())


def _of_same_shape(val: Table, train: Table) -> Table:
    """The validation images of the shape that images are generated in, which with buckets is training's largest."""
    shape = train.images.shape[2:]
    found = [table for table in getattr(val, "buckets", [val]) if table.images.shape[2:] == shape]
    if not found:
        size = "x".join(map(str, shape))
        raise UserError(
            f"val/fd: no validation image is {size}, as generated ones are; hold out more with data.val_share=."
        )
    return found[0]


def _features(val: Table, train: Table, config: Mapping[str, Any]) -> Features:
    """The features that `distance.features` names. Unlike in an evaluation, `auto` trains no network here."""
    device, choice = str(device_for(config)), config["distance"]["features"]
    side = max(val.images.shape[2:])

    def own() -> Features | None:
        """With `auto` random features, since nothing is trained for it; with `own` those of a classifier trained on
        these data."""
        return (
            random_features(side, device) if choice == "auto" else own_features(train, cache_of(config), device=device)
        )

    return open_features(choice, side, device, own)
