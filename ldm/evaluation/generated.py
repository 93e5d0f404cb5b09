"""Pictures of a data set's own conditions, drawn to be measured."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ldm.data.storage.table import Table
from ldm.evaluation.measures.image_set import Pictures
from ldm.model.latent_diffusion import LatentDiffusion

OPTIONS = ("sampler", "steps", "guidance")


def conditions(model: LatentDiffusion, table: Table, rows: np.ndarray, seed: int) -> dict[str, list]:
    """What a user would pass to draw those rows of `table`; empty for a model without conditions."""
    return model.conditioner.examples(table.batch(rows, model.conditioner.needs), seed)


def chosen_options(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: config[key] for key in OPTIONS if config.get(key) is not None}


def draw(
    model: LatentDiffusion, given: Mapping[str, list], n: int, seed: int, config: Mapping[str, Any], **options: Any
) -> Pictures:
    """`n` pictures, the i-th from seed + i, sampled as the config says, or `options`."""
    options = chosen_options(config) | options
    some = {key: values[:n] for key, values in given.items()}
    images = model.draw(some, 1 if some else n, seed=seed, batch_size=config["batch_size"], **options)
    return Pictures.of_tensor(images, model.preprocess, "generated pictures")
