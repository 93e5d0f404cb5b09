"""LoRA files in the formats of diffusers/peft and of kohya's tools, as pure conversions of state dicts that keep alpha.

Here a LoRA's weights have the names `unet.<module>.lora_A.weight` (down, (rank, in)) and `.lora_B.weight` (up), and
`alphas` maps `unet.<module>` to alpha: the change of a weight is alpha / rank * B A. Modules of CLIP's text encoder
keep `text_model.` in their names, as in files, whatever version of transformers is installed.
"""

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.artifact import refuse_not_finite
from ldm.common.errors import UserError, did_you_mean
from ldm.conditioning.text.clip_names import canonical, spellings
from ldm.interop.files.name_tables import bijection, report
from ldm.interop.files.values import read_json
from ldm.interop.lora import kohya_xl, trainer_files
from ldm.interop.lora import strength as lora_strength
from ldm.interop.lora.tensor_names import KOHYA, has_peft_names, split, unsupported

log = logging.getLogger("ldm")
FORMATS = ("diffusers", "kohya")
FILES = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")  # peft's and diffusers', in their folders


@dataclass(frozen=True)
class Lora:
    """`weights` by full name, `alphas` by `component.module`."""

    weights: dict[str, Tensor]
    alphas: dict[str, float]

    def rank(self, module: str) -> int:
        """The rank of a module, by its first matrix (rank, in)."""
        return self.weights[f"{module}.lora_A.weight"].shape[0]

    def of(self, component: str = "unet") -> dict[str, Tensor]:
        """The weights of one component without its prefix, as peft names them."""
        prefix = f"{component}."
        return {n.removeprefix(prefix): t for n, t in self.weights.items() if n.startswith(prefix)}


def adaptable(model: nn.Module, component: str = "unet") -> list[str]:
    """The modules that a LoRA can change, as `component.module`."""
    found = (n for n, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d)))
    return [f"{component}.{name}" for name in found]


def read(path: str | Path, modules: Iterable[str]) -> Lora:
    """The LoRA in a .safetensors file of either format; `modules` are the names that it may change (`adaptable`).

    An `adapter_config.json` beside it is read too. Raises UserError naming tensors that fit no module, incomplete pairs
    of matrices, and settings of the strength without a counterpart here.
    """
    state, metadata = contents(path)
    return from_contents(path, state, metadata, modules)


def from_contents(
    path: str | Path, state: Mapping[str, Tensor], metadata: Mapping[str, str], modules: Iterable[str]
) -> Lora:
    """As `read`, for a file whose `contents` have already been read."""
    lora = from_state(state, metadata, modules, where=str(path), config=config_beside(path, state))
    ranks = {module: lora.rank(module) for module in lora.alphas}
    has_convolutions = any(max(tensor.shape[2:], default=1) > 1 for tensor in lora.weights.values())
    trainer_files.warn_of_differences(path, lora.alphas, ranks, has_convolutions)
    return lora


def file_at(path: Path) -> Path | None:
    """The file of another tool's LoRA at a path: the path itself, or the file in a folder of peft or diffusers.

    Raises UserError where a folder holds both.
    """
    if path.is_file():
        return path if path.suffix.lower() == ".safetensors" else None
    found = [path / name for name in FILES if (path / name).is_file()]
    if len(found) > 1:
        raise UserError(f"{path} holds two LoRAs, {' and '.join(FILES)}: give the path of one of the files.")
    return found[0] if found else None


def contents(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A file's tensors and metadata."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} can't be read as a .safetensors file ({type(error).__name__}).") from None


def metadata_of(path: str | Path) -> dict[str, str]:
    """A file's metadata alone."""
    from safetensors import safe_open

    with safe_open(path, "pt") as opened:
        return opened.metadata() or {}


def config_beside(path: str | Path, names: Iterable[str]) -> tuple[str, dict[str, Any]] | None:
    """The peft config beside a file, with its path. Where peft's own file is there, the config belongs to that one."""
    path = Path(path)
    config = path.with_name("adapter_config.json")
    if not config.is_file():
        return None
    owner = path.with_name(FILES[0])
    if path.name != owner.name and not has_peft_names(names) and (owner.exists() or owner.with_suffix(".bin").exists()):
        log.warning("%s is taken to belong to the adapter_model beside it, not to %s", config, path.name)
        return None
    return str(config), read_json(config)


def write(path: str | Path, lora: Lora, to: str = "diffusers", xl: Iterable[str] = ()) -> None:
    """Writes a LoRA as diffusers reads it (the file is usually called `pytorch_lora_weights.safetensors`) or as kohya's
    tools do.

    `xl` are all modules of a Stable Diffusion XL base (`adaptable`), for which kohya's tools use other names.
    """
    from safetensors.torch import save_file

    if to not in FORMATS:
        raise UserError(f"to={to} isn't a LoRA format.{did_you_mean(to, FORMATS)}")
    state, metadata = to_diffusers(lora) if to == "diffusers" else (to_kohya(lora, xl), {})
    save_file({name: t.contiguous() for name, t in state.items()}, path, {"format": "pt", **metadata})


def kohya_table(modules: Iterable[str]) -> dict[str, str]:
    """{ours: kohya's} for modules. Dots become underscores, so the way back needs the list of modules."""
    return bijection((module, _kohya(_canonical(module))) for module in modules)


def from_state(
    state: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    modules: Iterable[str],
    where: str = "the LoRA",
    config: tuple[str, Mapping[str, Any]] | None = None,
) -> Lora:
    """A LoRA from a file's tensors and metadata, in whichever format; `config` is peft's, with its path."""
    known = _known(modules)
    weights: dict[str, Tensor] = {}
    alphas: dict[str, Tensor] = {}
    unexpected = []
    for name, tensor in state.items():
        given, leaf = split(name)
        module = known.get(given)
        if module is None or leaf is None:
            unexpected.append(name)
            continue
        kept, key = (alphas, module) if leaf == "alpha" else (weights, f"{module}.lora_{leaf}.weight")
        if key in kept:
            raise UserError(f"{where}: {name} is there twice, under two spellings: keep the right one.")
        kept[key] = tensor
    found = {*alphas, *(name.rsplit(".lora_", 1)[0] for name in weights)}
    missing = [f"{m}.lora_{x}" for m in sorted(found) for x in "AB" if f"{m}.lora_{x}.weight" not in weights]
    if unexpected or missing or not weights:
        raise UserError(f"{where}: {_misfit(missing, unexpected)}")
    _check_matrices(weights, where)
    ordered = {module: weights[f"{module}.lora_A.weight"] for module in sorted(found)}
    lora = Lora(
        weights,
        lora_strength.alphas(ordered, alphas, metadata, config=config, where=where, pefts=has_peft_names(state)),
    )
    check_strength(lora, 1.0, where)
    return lora


def to_diffusers(lora: Lora) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors under the names that diffusers uses today, and metadata with ranks and alphas.

    CLIP's modules are named without `text_model.`: peft matches the end of a name, so this fits both spellings.
    """
    config: dict[str, object] = {}
    for component in sorted({module.partition(".")[0] for module in lora.alphas}):
        own = {spellings(m.partition(".")[2])[-1]: m for m in lora.alphas if m.startswith(f"{component}.")}
        ranks = {short: lora.rank(m) for short, m in own.items()}
        alphas = {short: lora.alphas[m] for short, m in own.items()}
        rank, alpha = most_frequent(ranks.values()), most_frequent(alphas.values())
        settings = {
            "r": rank,
            "lora_alpha": _plain(alpha),
            "rank_pattern": {m: r for m, r in ranks.items() if r != rank},
            "alpha_pattern": {m: _plain(a) for m, a in alphas.items() if a != alpha},
            "target_modules": sorted(own),
        }
        config |= {f"{component}.{key}": value for key, value in settings.items()}
    weights = {_canonical(name): tensor for name, tensor in lora.weights.items()}
    return weights, {lora_strength.DIFFUSERS: json.dumps(config, sort_keys=True)}


def to_kohya(lora: Lora, xl: Iterable[str] = ()) -> dict[str, Tensor]:
    """Tensors under kohya's names, with the alphas; `xl` as for `write`."""
    state: dict[str, Tensor] = {}
    table = kohya_table(lora.alphas)
    if named := kohya_xl.kohya_names(xl):
        table |= {ours: named[ours] for ours in table if ours in named}
        table = {ours: theirs.replace("lora_te_", "lora_te1_", 1) for ours, theirs in table.items()}
    for ours, theirs in table.items():
        down, up = (lora.weights[f"{ours}.lora_{x}.weight"] for x in "AB")
        state |= {f"{theirs}.lora_down.weight": down, f"{theirs}.lora_up.weight": up}
        state[f"{theirs}.alpha"] = torch.tensor(lora.alphas[ours])
    return state


def _known(modules: Iterable[str]) -> dict[str, str]:
    """{name in a file: ours}, for either spelling of CLIP, kohya's underscores, and peft's names without a
    component."""
    ours = list(dict.fromkeys(map(_canonical, modules)))
    known = {module: module for module in ours} | {theirs: module for module, theirs in kohya_table(ours).items()}
    for module, theirs in kohya_xl.kohya_names(ours).items():
        known.setdefault(theirs, module)
    for module in ours:
        component, _, short = module.partition(".")
        for name in spellings(short):
            full = f"{component}.{name}"
            aliases = (full, _kohya(full), _kohya(full).replace("lora_te_", "lora_te1_", 1), name)
            for alias in aliases:
                known.setdefault(alias, module)
    return known


def _canonical(module: str) -> str:
    component, _, short = module.partition(".")
    return f"{component}.{canonical(short)}"


def _kohya(module: str) -> str:
    component, _, short = module.partition(".")
    return f"{KOHYA[component]}_{short.replace('.', '_')}"


def _check_matrices(weights: Mapping[str, Tensor], where: str) -> None:
    """Refuses tensors that can't be matrices of a LoRA, or aren't finite in float32, in which they are used."""
    for name, tensor in weights.items():
        if tensor.ndim not in (2, 4) or not tensor.numel() or not tensor.is_floating_point():
            kind = f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"
            raise UserError(f"{where}: {name} is {kind}, which a LoRA's matrix can't be: download the file again.")
    refuse_not_finite({name: tensor.float() for name, tensor in weights.items()}, where)


def check_strength(lora: Lora, scale: float, where: str) -> None:
    """Refuses a LoRA that changes some weight by scale * alpha / rank * B A of a useless size: the bound on it is above
    the square root of float32's largest number, so products with it may not be finite."""
    for module, alpha in lora.alphas.items():
        down, up = (lora.weights[f"{module}.lora_{x}.weight"].float().abs().amax().item() for x in "AB")
        if not abs(scale * alpha) * down * up < torch.finfo(torch.float32).max ** 0.5:
            raise UserError(
                f"{where}: alpha {alpha:g} at scale {scale:g} makes changes of {module} that are too large to be "
                "computed: take a smaller scale, or download the file again."
            )


def _misfit(missing: list[str], unexpected: list[str]) -> str:
    if kinds := unsupported(unexpected):
        return f"the LoRA can't be represented here: {kinds}."
    return f"the LoRA doesn't fit the model: {report(missing, unexpected) or 'it is empty'}."


def most_frequent(values: Iterable[float]) -> float:
    """The most frequent value, and the smallest of several."""
    values = list(values)
    return max(sorted(set(values)), key=values.count)


def _plain(value: float) -> float | int:
    return int(value) if float(value).is_integer() else value
