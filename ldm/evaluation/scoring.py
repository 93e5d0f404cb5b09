"""A set of generated images against a reference, in features: the figures that all reports and tables share."""

from typing import Any

import torch
from torch import Tensor

from ldm.common.errors import UserError
from ldm.evaluation.measures.distances import frechet_distance, kernel_distance, precision_recall
from ldm.evaluation.measures.features import Features
from ldm.evaluation.measures.image_set import ImageSet
from ldm.evaluation.report import spread

K = 3
LEAST = 8


def score(generated: Tensor, real: Tensor, features: Features) -> dict[str, float]:
    """Frechet and kernel distance, precision and recall of features (N, D) against (M, D)."""
    if min(len(generated), len(real)) < LEAST:
        raise UserError(
            f"{len(generated)} images against {len(real)}: a distance needs at least {LEAST} on both sides."
        )
    precision, recall = precision_recall(generated, real, K)
    return {
        features.frechet_name: frechet_distance(generated, real),
        features.kernel_name: kernel_distance(generated, real),
        f"precision (k = {K})": precision,
        f"recall (k = {K})": recall,
    }


def over_seeds(scores: list[dict[str, float]]) -> dict[str, dict]:
    """Mean and spread of each figure over sets that differ only in their seed."""
    return {name: spread([one[name] for one in scores]) for name in scores[0]}


def comparability(features: Features, images: ImageSet) -> dict[str, Any]:
    """What must be equal for figures to be comparable: the feature network and the images' preprocessing."""
    return {
        "features": {"name": features.name, "note": features.note, "weights": features.fingerprint},
        "prepared": dict(images.prepared),
    }


class NetworkCalls:
    """Counts a network's `calls` during a `with` block, and the samples in them as `rows`."""

    def __init__(self, network: torch.nn.Module):
        self.network, self.calls, self.rows = network, 0, 0

    def __enter__(self) -> "NetworkCalls":
        self.hook = self.network.register_forward_pre_hook(self._count)
        return self

    def __exit__(self, *_: object) -> None:
        self.hook.remove()

    def _count(self, module: torch.nn.Module, inputs: tuple) -> None:
        self.calls, self.rows = self.calls + 1, self.rows + len(inputs[0])

    def per_image(self, images: int, batches: int) -> tuple[float, float]:
        """Network evaluations per image, and guided steps per image; each guided step costs one more evaluation."""
        evaluations = self.rows / images
        return evaluations, max(0.0, evaluations - self.calls / batches)
