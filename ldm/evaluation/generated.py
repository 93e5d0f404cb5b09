"""Images generated for a data set's own conditions, to be measured."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ldm.data.storage.table import Table
from ldm.evaluation.measures.image_set import ImageSet
from ldm.model.latent_diffusion import LatentDiffusion

OPTIONS = ("sampler", "steps", "guidance")


def example_conditions(model: LatentDiffusion, table: Table, rows: np.ndarray, seed: int) -> dict[str, list]:
    """The conditions of those rows of `table` as a user would give them; {} for a model without conditions."""
    return model.conditioner.examples(table.batch(rows, model.conditioner.needs), seed)


def chosen_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """The sampling options that the config sets."""
    return {key: config[key] for key in OPTIONS if config.get(key) is not None}


def generate_set(
    model: LatentDiffusion,
    conditions: Mapping[str, list],
    n: int,
    *,
    seed: int,
    config: Mapping[str, Any],
    **options: Any,
) -> ImageSet:
    """`n` images of the first `n` conditions, the i-th from seed + i, sampled as the config and then `options` say."""
    options = chosen_options(config) | options
    some = {key: values[:n] for key, values in conditions.items()}
    images = model.generate_for(some, 1 if some else n, seed=seed, batch_size=config["batch_size"], **options)
    return ImageSet.of_tensor(images, model.preprocess, "generated images")
