"""`score.py`: scores as papers report them, of a run's samples or of images from elsewhere."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ldm.commands.evaluate import SPLITS, Tables, data_of
from ldm.commands.score.report import Reference, write_report
from ldm.common.errors import UserError, did_you_mean
from ldm.evaluation.generated import chosen_options
from ldm.evaluation.measures.features import inception_file
from ldm.evaluation.published.clip_score import NAME, ClipScore
from ldm.evaluation.published.embedders import Embedder, dinov2, inception
from ldm.evaluation.published.images import Images
from ldm.evaluation.published.sample_folder import SampleFolder
from ldm.evaluation.published.statistics import Statistics, distances, holds_images_alone, read_statistics
from ldm.evaluation.report import HtmlReport
from ldm.evaluation.scoring import LEAST
from ldm.model.computing import device
from ldm.model.latent_diffusion import LatentDiffusion
from ldm.model.loading import load
from ldm.training.ldm_run import class_names, number_labels
from ldm.training.runs.folder import find_run
from ldm.training.trainer.fit import cache_of


def main(config: dict[str, Any], job: str | None = None) -> dict[str, Any]:
    """Writes score.html and score.json, prints the scores and returns them. All that may be missing is looked for
    before the first sample is generated."""
    _check(config)
    embedders, clip = _networks(config)
    path = None if config["run"] is None else find_run("ldm", config["run"], config["runs_dir"])
    tables = _tables(path, config)
    reference = _reference(config, tables)
    for embedder in embedders:
        _check_reference(reference, embedder, config)
    samples = _samples(config, path, tables, clip=clip)
    figures = _measured(samples, reference, embedders, clip=clip, config=config)
    figures |= _clip_figures(samples, clip, config)
    report = HtmlReport(_report_folder(path, config, job), f"{samples.what} of {config['run'] or config['samples']}")
    return write_report(figures, samples, reference, report=report, config=config)


def _check(config: Mapping[str, Any]) -> None:
    """Refuses options that don't go together, before any work."""
    if config["run"] is None and config["samples"] is None:
        raise UserError("please give run= (a run of stage two), or samples= (a folder of images, or an .npz).")
    if config["run"] is None and config["reference"] in SPLITS:
        raise UserError(
            f"reference={config['reference']} is a split of a run's data: give run=, or another reference=."
        )
    if config["conditions"] not in SPLITS:
        raise UserError(f"conditions={config['conditions']} is unknown.{did_you_mean(config['conditions'], SPLITS)}")
    if config["n"] < LEAST:
        raise UserError(f"n={config['n']}: a distance needs at least {LEAST} images.")
    own = [f"{key}=" for key in ("sampler", "steps", "guidance") if config[key] is not None]
    if config["samples"] is not None and own:
        raise UserError(f"{own[0]} is for a run's own samples, and samples= are scored as they are: leave one out.")
    if config["save_reference"] and Path(config["save_reference"]).suffix != ".npz":
        raise UserError(f"save_reference={config['save_reference']} has to end in .npz.")


def _networks(config: Mapping[str, Any]) -> tuple[list[Embedder], ClipScore | None]:
    """The networks that the config names, opened before anything else."""
    here = device(config["device"])
    found = []
    if config["inception"] not in ("off", None, False):
        named = config["inception"]
        file = inception_file() if named == "auto" else Path(named).expanduser()
        if file is None:
            raise UserError(
                "FID needs Inception's weights, and torch's cache has none: give inception=FILE "
                "(pt_inception-2015-12-05-6726825d.pth of pytorch-fid, or torch-fidelity's file), or inception=off."
            )
        if not file.is_file():
            raise UserError(f"inception={named}: there is no such file; name one, or inception=off.")
        found.append(inception(file, config["resizing"], here))
    if config["dinov2"]:
        found.append(dinov2(config["dinov2"], here))
    clip = ClipScore(config["clip"], here) if config["clip"] else None
    if not found and clip is None:
        raise UserError("nothing to measure: give inception=, dinov2= or clip=.")
    if config["save_reference"] and len(found) != 1:
        raise UserError(
            f"save_reference= writes the statistics of one network, and {len(found)} are measured: give inception= or "
            "dinov2= alone."
        )
    return found, clip


def _tables(path: Path | None, config: Mapping[str, Any]) -> Tables | None:
    """The run's data, if anything is taken from them."""
    if path is None or (config["samples"] is not None and config["reference"] not in SPLITS):
        return None
    return data_of(path, config)


def _reference(config: Mapping[str, Any], tables: Tables | None) -> Reference:
    """The real images to compare with, or their statistics."""
    named = config["reference"]
    if named in SPLITS:
        assert tables is not None
        table = tables[SPLITS[named]]
        what = f"{table.originals} {'training' if named == 'train' else 'validation'} images"
        buckets = len(getattr(table, "buckets", ()))
        what += f", those of the largest of {buckets} buckets" if buckets > 1 else ""
        return _enough(Images.of_table(table, np.arange(table.originals), what))
    path = Path(named).expanduser()
    if path.suffix == ".npz" and not holds_images_alone(path):
        return read_statistics(path)
    return _enough(Images.of_path(path))


def _enough(images: Images) -> Images:
    if images.count < LEAST:
        raise UserError(f"{images.what}: a distance needs at least {LEAST} images on both sides; name others.")
    return images


def _check_reference(reference: Reference, embedder: Embedder, config: Mapping[str, Any]) -> None:
    """Raises UserError for statistics that were made by another protocol, which no distance could be measured to."""
    if isinstance(reference, Images):
        return
    width = len(reference.gaussians[0].mu)
    if width != embedder.width:
        raise UserError(
            f"reference={config['reference']} has statistics of {width} features, and {embedder.names[0]} has "
            f"{embedder.width}: name others, or leave this score out."
        )
    if reference.protocol and reference.protocol != embedder.key:
        raise UserError(
            f"reference={config['reference']} was made with other weights or resizing ({reference.protocol}), and this "
            f"is {embedder.key}: choose the same, or another reference."
        )


def _samples(config: Mapping[str, Any], path: Path | None, tables: Tables | None, *, clip: ClipScore | None) -> Images:
    """The images to score: those given, or the run's own, generated where they aren't there yet."""
    if config["samples"] is not None:
        images = _enough(Images.of_path(config["samples"]))
        if clip and images.texts is None:
            raise UserError(
                f"clip= needs captions: {config['samples']} has no metadata.jsonl with a text for each file_name. Add "
                "it, or leave clip= out."
            )
        return images
    assert path is not None and tables is not None
    model = load(path, device(config["device"]), precision=config["precision"], compile=config["compile"])
    if not isinstance(model, LatentDiffusion):
        raise UserError(f"{path} holds a {type(model).__name__}; name a run of stage two.")
    if clip and "text" not in model.conditioner.needs:
        raise UserError("clip= needs captions, and this model isn't conditioned on text: leave clip= out.")
    table = number_labels(tables, class_names(model.conditioner), f"the model {path}")[SPLITS[config["conditions"]]]
    rows = np.random.default_rng(config["seed"]).permutation(table.originals)
    folder = SampleFolder(path / "score", model, table, rows, seed=config["seed"], options=chosen_options(config))
    return folder.fill(config["n"], config["batch_size"])


def _measured(
    samples: Images,
    reference: Reference,
    embedders: list[Embedder],
    *,
    clip: ClipScore | None,
    config: Mapping[str, Any],
) -> dict[str, Any]:
    """The distances, with the protocol of each."""
    figures: dict[str, Any] = {}
    protocols: dict[str, Any] = {}
    cache = cache_of(config)
    for embedder in embedders:
        real = reference
        if isinstance(real, Images):
            real = embedder.statistics(real, config["batch_size"], cache)
        if config["save_reference"]:
            real.save(Path(config["save_reference"]).expanduser())
        found = distances(embedder.statistics(samples, config["batch_size"], cache), real, embedder.names)
        figures |= found
        about = {"samples": samples.count, "reference": _described(real, config), **_missing(embedder, found)}
        protocols[embedder.names[0]] = {**embedder.protocol, **about}
    if clip:
        protocols[NAME] = {**clip.protocol, "samples": samples.count, "reference": "each sample's own caption"}
    return figures | {"protocols": protocols}


def _missing(embedder: Embedder, found: Mapping[str, float]) -> dict[str, str]:
    """What can't be measured with this reference, in words."""
    absent = [name for name in embedder.names if name not in found]
    return {"not measured": f"{', '.join(absent)}: the reference has no mu_s and sigma_s"} if absent else {}


def _described(statistics: Statistics, config: Mapping[str, Any]) -> str:
    """The reference in a report: what it is, how many images, and whether their protocol is known."""
    if not isinstance(config["reference"], str) or not config["reference"].endswith(".npz"):
        return statistics.what
    name = Path(config["reference"]).name
    if not statistics.protocol:
        return f"{name} (it doesn't say by which weights and resizing, nor of how many images)"
    return f"{name}: {statistics.images} images ({statistics.what})"


def _clip_figures(samples: Images, clip: ClipScore | None, config: Mapping[str, Any]) -> dict[str, Any]:
    return clip.figures(samples, config["batch_size"]) if clip else {}


def _report_folder(path: Path | None, config: Mapping[str, Any], job: str | None) -> Path:
    """The folder of the report: `out`, or score/ in the run; each job of a sweep has its own."""
    if config["out"] or path is None:
        return Path(config["out"] or "score").expanduser() / (job or "")
    return path / (f"score-{job}" if job else "score")
