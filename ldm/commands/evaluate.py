"""`evaluate.py`: scores of a trained run, or of images from elsewhere, against real images."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ldm.common.errors import UserError, did_you_mean
from ldm.common.randomness import permutation
from ldm.common.registry import build
from ldm.data.caption_changes import CaptionChanges
from ldm.data.storage.table import Table
from ldm.evaluation import stage_one, stage_two
from ldm.evaluation.measures.classifier import own_features
from ldm.evaluation.measures.features import Features, open_features
from ldm.evaluation.measures.image_set import ImageSet
from ldm.evaluation.report import HtmlReport, plain, shown
from ldm.evaluation.scoring import LEAST
from ldm.images import Preprocess
from ldm.interop.hub import origin_of
from ldm.model.computing import computed_in, device
from ldm.model.latent_diffusion import LatentDiffusion
from ldm.model.loading import load
from ldm.networks import Autoencoder
from ldm.training.ldm_run import class_names, number_labels
from ldm.training.runs.folder import find_run
from ldm.training.trainer.fit import cache_of, import_modules

Tables = tuple[Table, Table]
SPLITS = {"train": 0, "val": 1}
STAGES = ("ldm", "vae")


def main(config: dict[str, Any], job: str | None = None) -> dict[str, Any]:
    """Writes a report with images and evaluation.json, prints the figures and returns them."""
    _check(config)
    figures, report = _measure_run(config, job) if config["samples"] is None else _measure_images(config, job)
    return _finish(figures, report, config)


def _check(config: Mapping[str, Any]) -> None:
    """Refuses options that don't go together, before any work."""
    if config["stage"] not in STAGES:
        raise UserError(f"stage={config['stage']} is unknown.{did_you_mean(config['stage'], STAGES)}")
    if config["samples"] is not None and config["stage"] == "vae":
        raise UserError("samples= are scored like images of stage two: leave out stage=vae.")
    if config["run"] is None and (config["samples"] is None or config["reference"] in (None, *SPLITS)):
        raise UserError("give run= (a run, by name or path), or samples= and reference= (folders of images).")
    for key in ("reference", "samples"):
        if str(config[key]).endswith(".npz"):
            raise UserError(f"{key}={config[key]}: score.py compares with statistics and images in .npz files; use it.")
    if config["curve"]["n"] < LEAST:
        raise UserError(f"curve.n={config['curve']['n']}: a distance needs at least {LEAST} images.")


def _measure_run(config: Mapping[str, Any], job: str | None) -> tuple[dict[str, Any], HtmlReport]:
    """The figures of a trained model of either stage."""
    path = find_run(config["stage"], config["run"], config["runs_dir"])
    model = load(path, device(config["device"]), precision=config["precision"], compile=config["compile"])
    tables, source = data_of(path, config), _source_of(path)
    report = HtmlReport(_report_folder(path, config, job), f"{config['stage']} {Path(config['run']).name}")
    features = features_for(tables[1].preprocess, tables[0], config)
    if isinstance(model, Autoencoder):
        beta = _config_of_run(path).get("beta")
        figures = stage_one.measure(model, tables[1], features, config, report=report, beta=beta, source=source)
        return figures | computed_in(model), report
    if isinstance(model, LatentDiffusion):
        tables = number_labels(tables, class_names(model.conditioner), f"the model {path}")
        reference = _reference(config, tables, model.preprocess)
        figures = stage_two.measure(model, tables, reference, features, config=config, report=report, source=source)
        return figures | computed_in(model), report
    raise UserError(
        f"{path} holds a {type(model).__name__}, which evaluate.py can't score; name a run of either stage."
    )


def _measure_images(config: Mapping[str, Any], job: str | None) -> tuple[dict[str, Any], HtmlReport]:
    """The figures of a folder of images, or of a split of the run's own data to show what real images score."""
    tables, path = None, Path()
    if config["run"] is not None:
        path = find_run(config["stage"], config["run"], config["runs_dir"])
        tables = data_of(path, config)
    preprocess = tables[1].preprocess if tables else _preprocess_of_size(config)
    reference = _reference(config, tables, preprocess)
    like = preprocess or build(dict(reference.prepared))
    samples = _images(config["samples"], tables, like, config)
    report = HtmlReport(
        _report_folder(path, config, job, "evaluation-samples"), f"{samples.what} against {reference.what}"
    )
    train = tables[0] if tables and config["samples"] != "train" else None
    features = features_for(like, tables[0] if tables else None, config)
    figures = stage_two.score_set(samples, reference, train, features, config=config, report=report)
    return figures, report


def _finish(figures: dict[str, Any], report: HtmlReport, config: Mapping[str, Any]) -> dict[str, Any]:
    """Saves the report and prints the figures; the verdict comes last."""
    report.save(figures)
    hidden = ("prepared", "features", "findings", "verdict", "sampling")
    for name, value in figures.items():
        if name not in hidden and not name.startswith("curve"):
            print(f"{name}: {shown(value)}")
    for finding in figures.get("findings", []):
        print(f"{finding['name']}: {finding['text']}. Advice: {finding['advice']}.")
    print(f"features: {figures['features']['name']} ({figures['features']['note']})")
    print(f"report: {report.folder / 'report.html'}", flush=True)
    if "verdict" in figures:
        print(f"verdict: {figures['verdict']}", flush=True)
    return plain(figures)


def data_of(path: Path, config: Mapping[str, Any]) -> Tables:
    """The data set that the run was trained on, for training and for validation."""
    train, val = _source_of(path).tables(cache_of(config) / "data")
    changes = CaptionChanges.of({"seed": 0} | _config_of_run(path))
    return (train, changes.fixed(val)) if changes else (train, val)


def _source_of(path: Path) -> Any:
    """The source of the run's images, as its config.yaml names it."""
    config = _config_of_run(path)
    import_modules(config)
    return build(config["data"], "data")


def _config_of_run(path: Path) -> dict[str, Any]:
    try:
        if origin_of(path):  # a config names modules to import, and none of a repository's is read
            raise FileNotFoundError
        return yaml.safe_load((path / "config.yaml").read_text())
    except OSError:
        raise UserError(f"{path} has no config.yaml that says what it was trained with; name a run folder.") from None


def _reference(config: Mapping[str, Any], tables: Tables | None, preprocess: Preprocess | None) -> ImageSet:
    """The real images to compare with: validation by default, or training where validation has too few images."""
    few = tables is not None and len(tables[1]) < LEAST
    if few and config["reference"] is None:
        print(f"validation has fewer than {LEAST} images: compared with training images", flush=True)
    found = _images(config["reference"] or ("train" if few else "val"), tables, preprocess, config)
    if len(found) < LEAST:
        raise UserError(
            f"{found.what} are {len(found)} images, and a distance needs at least {LEAST}: name others with "
            "reference=, such as reference=train, another run, or a folder."
        )
    return found


def _images(named: str, tables: Tables | None, preprocess: Preprocess | None, config: Mapping[str, Any]) -> ImageSet:
    """The images that `reference` or `samples` names, at most reference_n of them.

    These are a split of the run's own data, the validation images of another run, or a folder of images.
    """
    most = config["reference_n"]
    if named in SPLITS:
        if tables is None:
            raise UserError(f"'{named}' is a split of a run's data: give run= too.")
        return _split(tables[SPLITS[named]], most, {"train": "training", "val": "validation"}[named])
    for stage in STAGES:
        if (Path(config["runs_dir"]).expanduser() / stage / named / "config.yaml").is_file():
            path = find_run(stage, named, config["runs_dir"])
            return _split(data_of(path, config)[1], most, f"{named}'s validation")
    resize = config["size"] is not None
    if resize and preprocess and (preprocess.height, preprocess.width) != _size(config["size"]):
        raise UserError(
            f"size={config['size']}: the run's images are {preprocess.height}x{preprocess.width}; leave out size=."
        )
    return ImageSet.of_folder(named, preprocess, resize, most)


def features_for(preprocess: Preprocess, train: Table | None, config: Mapping[str, Any]) -> Features:
    """The feature network that the config names, for images of this size. One named `own` is trained on `train`."""
    here = device(config["device"])
    side = max(preprocess.height, preprocess.width)

    def own() -> Features | None:
        """Features of a network trained on this data set; None where there are no training data."""
        return own_features(train, cache_of(config), device=here) if train is not None else None

    return open_features(config["features"], side, here, own)


def _report_folder(path: Path, config: Mapping[str, Any], job: str | None, name: str = "evaluation") -> Path:
    """The folder of the report: `out`, or a folder in the run. Each job of a sweep has its own."""
    if config["out"]:
        return Path(config["out"]).expanduser() / (job or "")
    return path / (f"{name}-{job}" if job else name)


def _split(table: Table, most: int, what: str) -> ImageSet:
    rows = np.sort(permutation(0, 0, len(table))[:most])
    return ImageSet.of_table(table, rows, f"{len(rows)} of {len(table)} {what} images")


def _preprocess_of_size(config: Mapping[str, Any]) -> Preprocess | None:
    """The preprocessing for images of two folders: RGB, resized to `size`; None without `size`."""
    if config["size"] is None:
        return None
    height, width = _size(config["size"])
    return Preprocess(3, height, width)


def _size(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])
