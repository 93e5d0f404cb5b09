"""Quality against cost: images of the same conditions and seeds at several guidance scales and numbers of steps."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ldm.evaluation.generated import generate_set
from ldm.evaluation.measures.distances import frechet_distance, kernel_distance
from ldm.evaluation.measures.features import Features
from ldm.evaluation.report import HtmlReport, new_figure
from ldm.evaluation.scoring import NetworkCalls
from ldm.model.latent_diffusion import LatentDiffusion


class Curves:
    """Measures images for each value in `curve.guidance` and `curve.steps`, `curve.n` of them for each.

    `real` are the features (N, D) of the reference.
    """

    def __init__(
        self,
        model: LatentDiffusion,
        conditions: Mapping[str, list],
        *,
        real: Tensor,
        features: Features,
        config: Mapping[str, Any],
    ):
        self.model, self.conditions, self.real, self.features, self.config = model, conditions, real, features, config
        self.n = min(config["curve"]["n"], config["n"]) if conditions else config["curve"]["n"]

    def measure(self, report: HtmlReport) -> dict[str, Any]:
        """The points of each curve, with a plot in the report; {} if the config names no values."""
        found: dict[str, Any] = {}
        for option in ("guidance", "steps"):
            values = self.config["curve"][option]
            values = values if isinstance(values, list) else [values]
            if values:
                points = [self.point(**{option: value}) for value in values]
                found[f"curve over {option}"] = points
                self._plot(report, option, points)
        return found

    def point(self, **options: Any) -> dict[str, Any]:
        """The distances at one setting, and what an image costs there."""
        with NetworkCalls(self.model.denoiser.network) as count:
            generated = generate_set(
                self.model, self.conditions, self.n, seed=self.config["seed"], config=self.config, **options
            )
        evaluations, guided = count.per_image(self.n, -(-self.n // self.config["batch_size"]))
        found = self.features.of(generated)
        return {
            **options,
            self.features.frechet_name: frechet_distance(found, self.real),
            self.features.kernel_name: kernel_distance(found, self.real),
            "network evaluations": evaluations,
            "guided steps": guided,
            "pictures": self.n,
        }

    def _plot(self, report: HtmlReport, option: str, points: list[dict[str, Any]]) -> None:
        report.heading(f"Over {option}")
        report.rows(list(points[0]), [list(point.values()) for point in points])
        axes_of = ("guidance",) if option == "guidance" else ("network evaluations", "guided steps")
        figure = new_figure(4.2 * len(axes_of), 3.2)
        for i, name in enumerate(axes_of):
            axes = figure.add_subplot(1, len(axes_of), i + 1)
            axes.plot([p[name] for p in points], [p[self.features.frechet_name] for p in points], marker="o")
            axes.set_xlabel(name if name == "guidance" else f"{name} per image")
            axes.set_ylabel(self.features.frechet_name)
        figure.tight_layout()
        caption = f"{self.n} images at each point: compare the points with each other, not with other numbers."
        report.plot(f"curve_{option}", figure, caption)
