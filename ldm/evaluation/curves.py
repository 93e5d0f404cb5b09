"""Quality against what it costs: the same pictures at several guidance scales and numbers of steps."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ldm.evaluation.generated import draw
from ldm.evaluation.measures.distances import frechet_distance, kernel_distance
from ldm.evaluation.measures.features import Features
from ldm.evaluation.report import Report, new_figure
from ldm.evaluation.scoring import NetworkCalls
from ldm.model.latent_diffusion import LatentDiffusion


class Curves:
    """`curve.guidance` and `curve.steps`, lists of values to try, with `curve.n` pictures each."""

    def __init__(
        self,
        model: LatentDiffusion,
        given: Mapping[str, list],
        real: Tensor,
        features: Features,
        config: Mapping[str, Any],
    ):
        self.model, self.given, self.real, self.features, self.config = model, given, real, features, config
        self.n = min(config["curve"]["n"], config["n"]) if given else config["curve"]["n"]

    def measure(self, report: Report) -> dict[str, Any]:
        """The points of each curve, with a plot in the report; empty where none was asked for."""
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
        """One setting: its distances, and what a picture costs."""
        with NetworkCalls(self.model.denoiser.network) as count:
            drawn = draw(self.model, self.given, self.n, self.config["seed"], self.config, **options)
        evaluations, guided = count.per_picture(self.n, -(-self.n // self.config["batch_size"]))
        found = self.features.of(drawn)
        return {
            **options,
            self.features.frechet_name: frechet_distance(found, self.real),
            self.features.kernel_name: kernel_distance(found, self.real),
            "network evaluations": evaluations,
            "guided steps": guided,
            "pictures": self.n,
        }

    def _plot(self, report: Report, option: str, points: list[dict[str, Any]]) -> None:
        report.heading(f"Over {option}")
        report.rows(list(points[0]), [list(point.values()) for point in points])
        axes_of = ("guidance",) if option == "guidance" else ("network evaluations", "guided steps")
        figure = new_figure(4.2 * len(axes_of), 3.2)
        for i, name in enumerate(axes_of):
            axes = figure.add_subplot(1, len(axes_of), i + 1)
            axes.plot([p[name] for p in points], [p[self.features.frechet_name] for p in points], marker="o")
            axes.set_xlabel(name if name == "guidance" else f"{name} a picture")
            axes.set_ylabel(self.features.frechet_name)
        figure.tight_layout()
        caption = f"{self.n} pictures at each point: compare the points with each other, not with other numbers."
        report.plot(f"curve_{option}", figure, caption)
