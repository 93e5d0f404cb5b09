"""The models that the page generates with: found by the name of their run, kept in memory while they are used."""

import json
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ldm.common.errors import UserError, did_you_mean
from ldm.interop import hub
from ldm.model.latent_diffusion import LatentDiffusion
from ldm.model.latent_space import autoencoder
from ldm.model.loading import load
from ldm.training.runs.folder import find_run, run_names

log = logging.getLogger("ldm")
MAX_LOADED = 2  # models in memory


@dataclass(frozen=True)
class Traits:
    """What the page needs to know of a model: the conditions that it needs, its classes, the size of its images in
    pixels, its default sampling options, and whether it is a distilled student."""

    needs: tuple[str, ...]
    classes: tuple[str, ...]
    width: int
    height: int
    channels: int
    sampling: dict[str, Any]
    distilled: bool = False


class Models:
    """The runs of stage two under `runs_dir`, and the run `given`, by name or path. Thread-safe.

    `coding` is how networks are computed, for `ldm.load`. `preview_decoder` is a small decoder for previews, by
    run or path; models whose latents it doesn't read use their own.
    """

    def __init__(
        self,
        runs_dir: Path,
        given: str | None = None,
        device: str = "cpu",
        coding: Mapping[str, Any] | None = None,
        preview_decoder: str | None = None,
    ):
        self.runs_dir, self.given, self.device, self.coding = runs_dir, given, device, dict(coding or {})
        self._loaded: OrderedDict[tuple, LatentDiffusion] = OrderedDict()
        self._lock = threading.Lock()
        # Found once: what lies on the hub is downloaded and verified here, not at each use.
        path = None if given is None else find_run("ldm", given, runs_dir)
        self._downloaded = path if hub.is_address(given) else None
        self.preview_decoder = None if preview_decoder is None else find_run("vae", preview_decoder, runs_dir)
        if self.preview_decoder is not None:
            autoencoder(load(self.preview_decoder), f"preview_decoder={preview_decoder}")  # refuses any other model

    def names(self) -> list[str]:
        """The runs to choose from, with the one that the page was started with first."""
        names = [name for name in run_names("ldm", self.runs_dir) if self._is_loadable(self.runs_dir / "ldm" / name)]
        return ([self.given] if self.given else []) + [name for name in names if name != self.given]

    def path(self, name: str) -> Path:
        """The folder of a run in `names`: the page opens no other files. Raises UserError for any other name."""
        if not isinstance(name, str) or not name:
            raise UserError("no run is chosen: choose one to generate with.")
        if name not in self.names():
            raise UserError(f"there is no run '{name}' to generate with.{did_you_mean(name, self.names())}")
        return self._downloaded if self._downloaded and name == self.given else find_run("ldm", name, self.runs_dir)

    def checkpoints(self, name: str) -> list[str]:
        """The checkpoints of a run, oldest first."""
        return sorted(path.name for path in (self.path(name) / "checkpoints").glob("step-*.ckpt"))

    def adapters(self) -> tuple[list[str], list[str]]:
        """The names of the runs that are LoRAs, and of those that are ControlNets."""
        kinds: dict[str, list[str]] = {"LoraAdapter": [], "Control": []}
        for name in run_names("ldm", self.runs_dir):
            kinds.get(_kind(self.runs_dir / "ldm" / name), []).append(name)
        return kinds["LoraAdapter"], kinds["Control"]

    def enlargers(self) -> list[str]:
        """The names of the runs that enlarge images (conditioner=low_res)."""
        return [name for name in self.names() if _enlarges(self.path(name))]

    def student(self, name: str) -> str | None:
        """The run that was distilled from the run `name`; None if there is none."""
        return next((one for one in self.names() if _distilled_from(self.path(one)) == Path(name).name), None)

    def get(
        self, name: str, checkpoint: str | None = None, loras: Sequence[str] = (), controls: Sequence[str] = ()
    ) -> LatentDiffusion:
        """The model of a run or of one of its checkpoints, with LoRAs and ControlNets on it.

        They are named by their position: `lora_0`, ..., `control_0`, ... Raises UserError for unknown names.
        """
        path = self._file(name, checkpoint)
        known_loras, known_controls = self.adapters() if loras or controls else ([], [])
        adapters = (
            self._adapter_paths("LoRA", loras, known_loras),
            self._adapter_paths("ControlNet", controls, known_controls),
        )
        key = (str(path), *_stamp(path), *((str(p), *_stamp(p)) for paths in adapters for p in paths))
        with self._lock:
            if key not in self._loaded:
                self._loaded[key] = self._load(path, *adapters)
            self._loaded.move_to_end(key)
            while len(self._loaded) > MAX_LOADED:
                self._loaded.popitem(last=False)
            return self._loaded[key]

    def traits(self, name: str, checkpoint: str | None = None) -> Traits:
        """The traits of the model that `get` gives."""
        return traits(self.get(name, checkpoint))

    def _load(self, path: Path, loras: Sequence[Path], controls: Sequence[Path]) -> LatentDiffusion:
        model = load(path, self.device, **self.coding)
        if not isinstance(model, LatentDiffusion):
            raise UserError(f"{path} holds a {type(model).__name__}; the page generates with runs of stage two.")
        self._add_preview_decoder(model, path)
        for i, lora in enumerate(loras):
            model.load_lora(lora, name=f"lora_{i}")
        for i, control in enumerate(controls):
            model.load_controlnet(control, name=f"control_{i}")
        return model.to(self.device).eval()

    def _add_preview_decoder(self, model: LatentDiffusion, path: Path) -> None:
        if self.preview_decoder is None:
            return
        try:
            model.load_preview_decoder(self.preview_decoder)
        except UserError as error:
            log.warning("previews of %s are decoded by its own first stage: %s", path.name, error)

    def _adapter_paths(self, kind: str, names: Sequence[str], known: Sequence[str]) -> list[Path]:
        for name in names:
            if name not in known:
                raise UserError(f"there is no {kind} '{name}' among the runs.{did_you_mean(name, known)}")
        return [self.runs_dir / "ldm" / name for name in names]

    def _file(self, name: str, checkpoint: str | None) -> Path:
        if checkpoint is None:
            return self.path(name)
        known = self.checkpoints(name)
        if checkpoint not in known:
            raise UserError(f"{name} has no checkpoint '{checkpoint}'.{did_you_mean(checkpoint, known)}")
        return self.path(name) / "checkpoints" / checkpoint

    def _is_loadable(self, path: Path) -> bool:
        return (path / "model" / "manifest.json").is_file() and _kind(path) in ("", LatentDiffusion.__name__)


def traits(model: LatentDiffusion) -> Traits:
    """The traits of a loaded model."""
    classes = next((part.names or range(part.classes) for part in _parts(model) if hasattr(part, "classes")), ())
    preprocess = model.preprocess
    return Traits(
        needs=tuple(model.conditioner.needs),
        classes=tuple(str(name) for name in classes),
        width=preprocess.width,
        height=preprocess.height,
        channels=preprocess.channels,
        sampling=dict(model.sampling),
        distilled=bool(model.distilled),
    )


def _kind(path: Path) -> str:
    """The class in a run's model folder; empty if its config.json doesn't name one."""
    return str(_section(_read(path / "model" / "config.json", json.loads), "model").get("class", ""))


def _enlarges(path: Path) -> bool:
    """Whether the model in a run's folder is one for super-resolution."""
    model = _section(_read(path / "model" / "config.json", json.loads), "model")
    parts = _section(_section(model, "conditioner"), "parts")
    return any(_section(parts, part).get("class") == "LowRes" for part in parts)


def _distilled_from(path: Path) -> str:
    """The name of the run that a run distills; empty if it distills none."""
    config = _read(path / "config.yaml", yaml.safe_load)
    is_student = _section(config, "finetune").get("class") == "DistillFinetune"
    return Path(str(config.get("base"))).name if is_student else ""


def _read(path: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
    """A file's content as plain data; empty if it can't be read."""
    try:
        read = parse(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):  # RecursionError: of deep nesting
        return {}
    return read if isinstance(read, dict) else {}


def _section(config: Mapping[str, Any], key: str) -> dict[str, Any]:
    section = config.get(key)
    return section if isinstance(section, dict) else {}


def _parts(model: LatentDiffusion) -> list[Any]:
    return list(model.conditioner.parts.values())


def _stamp(path: Path) -> tuple[int, ...]:
    """A value that changes when the model at `path` is rewritten."""
    manifest = next((p for p in (path / "model" / "manifest.json", path / "manifest.json") if p.is_file()), path)
    state = manifest.stat()
    return state.st_mtime_ns, state.st_size
