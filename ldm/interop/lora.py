"""LoRA files in the formats of diffusers/peft and of kohya, as pure conversions of state dicts. Alpha is kept.

Here a LoRA's weights have the names `unet.<module>.lora_A.weight` (down, (rank, in)) and `.lora_B.weight` (up), and
`alphas` says by `unet.<module>` what alpha is: the change of a weight is alpha / rank * B A.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from ldm.errors import UserError, did_you_mean
from ldm.interop.names import bijection, report

FORMATS = ("diffusers", "kohya")
_METADATA = "lora_adapter_metadata"  # the key under which diffusers keeps peft's config
_KOHYA = {"unet": "lora_unet", "text_encoder": "lora_te"}
_LEAVES = {  # what formats call the two matrices, the newest of diffusers first
    ".lora_A.weight": "A",
    ".lora_B.weight": "B",
    ".lora.down.weight": "A",
    ".lora.up.weight": "B",
    ".lora_down.weight": "A",
    ".lora_up.weight": "B",
}


@dataclass(frozen=True)
class Lora:
    """`weights` by full name, `alphas` by `component.module`."""

    weights: dict[str, Tensor]
    alphas: dict[str, float]

    def rank(self, module: str) -> int:
        return self.weights[f"{module}.lora_A.weight"].shape[0]

    def of(self, component: str = "unet") -> dict[str, Tensor]:
        """One component's weights, without its prefix: as peft names them."""
        prefix = f"{component}."
        return {n.removeprefix(prefix): t for n, t in self.weights.items() if n.startswith(prefix)}


def adaptable(model: nn.Module, component: str = "unet") -> list[str]:
    """The modules that a LoRA can change, as `component.module`."""
    found = (n for n, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d)))
    return [f"{component}.{name}" for name in found]


def read(path: str | Path, modules: Iterable[str]) -> Lora:
    """The LoRA in a .safetensors file of either format; `modules` are the names that it may change (`adaptable`).

    Raises UserError naming what fits none of them, and what is half there.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as opened:
            state, metadata = {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} can't be read as a .safetensors file ({type(error).__name__}).") from None
    return from_state(state, metadata, modules, str(path))


def write(path: str | Path, lora: Lora, to: str = "diffusers") -> None:
    """Writes a LoRA as diffusers reads it (`pytorch_lora_weights.safetensors` by custom) or as kohya's tools do."""
    from safetensors.torch import save_file

    if to not in FORMATS:
        raise UserError(f"to={to} isn't a LoRA format.{did_you_mean(to, FORMATS)}")
    state, metadata = to_diffusers(lora) if to == "diffusers" else (to_kohya(lora), {})
    save_file({name: t.contiguous() for name, t in state.items()}, path, {"format": "pt", **metadata})


def kohya_table(modules: Iterable[str]) -> dict[str, str]:
    """{ours: kohya's} for modules: dots become underscores, so only the list of modules can undo it."""
    split = (m.partition(".")[::2] for m in modules)
    return bijection((f"{c}.{m}", f"{_KOHYA[c]}_{m.replace('.', '_')}") for c, m in split)


def from_state(
    state: Mapping[str, Tensor], metadata: Mapping[str, str], modules: Iterable[str], where: str = "the LoRA"
) -> Lora:
    """A LoRA out of a file's tensors and metadata, whichever format it is in."""
    modules = set(modules)
    kohya = {theirs: ours for ours, theirs in kohya_table(modules).items()}
    weights: dict[str, Tensor] = {}
    alphas: dict[str, float] = {}
    unexpected = []
    for name, tensor in state.items():
        given_module, leaf = _split(name)
        module = _full_name(kohya.get(given_module, given_module), modules)
        if module is None or leaf is None:
            unexpected.append(name)
        elif leaf == "alpha":
            alphas[module] = float(tensor)
        else:
            weights[f"{module}.lora_{leaf}.weight"] = tensor
    found = {name.rsplit(".lora_", 1)[0] for name in weights}
    missing = [f"{m}.lora_{x}" for m in sorted(found) for x in "AB" if f"{m}.lora_{x}.weight" not in weights]
    if unexpected or missing or not weights:
        raise UserError(f"{where}: the LoRA doesn't fit the model: {report(missing, unexpected) or 'it is empty'}.")
    given = _alphas_of(metadata, found)
    ranks = {m: float(weights[f"{m}.lora_A.weight"].shape[0]) for m in found}
    return Lora(weights, {m: alphas.get(m, given.get(m, ranks[m])) for m in sorted(found)})  # none: alpha is the rank


def to_diffusers(lora: Lora) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors under today's names of diffusers, and the metadata that carries ranks and alphas."""
    config: dict[str, object] = {}
    for component in sorted({module.partition(".")[0] for module in lora.alphas}):
        own = {m.partition(".")[2]: m for m in lora.alphas if m.startswith(f"{component}.")}
        ranks = {short: lora.rank(m) for short, m in own.items()}
        alphas = {short: lora.alphas[m] for short, m in own.items()}
        rank, alpha = _commonest(ranks.values()), _commonest(alphas.values())
        settings = {
            "r": rank,
            "lora_alpha": _plain(alpha),
            "rank_pattern": {m: r for m, r in ranks.items() if r != rank},
            "alpha_pattern": {m: _plain(a) for m, a in alphas.items() if a != alpha},
            "target_modules": sorted(own),
        }
        config |= {f"{component}.{key}": value for key, value in settings.items()}
    return dict(lora.weights), {_METADATA: json.dumps(config, sort_keys=True)}


def to_kohya(lora: Lora) -> dict[str, Tensor]:
    """Tensors under kohya's names, alphas among them."""
    state: dict[str, Tensor] = {}
    for ours, theirs in kohya_table(lora.alphas).items():
        down, up = (lora.weights[f"{ours}.lora_{x}.weight"] for x in "AB")
        state |= {f"{theirs}.lora_down.weight": down, f"{theirs}.lora_up.weight": up}
        state[f"{theirs}.alpha"] = down.new_tensor(lora.alphas[ours])
    return state


def _split(name: str) -> tuple[str, str | None]:
    """A tensor's module and what it is of it: A, B or alpha."""
    name = name.removeprefix("base_model.model.")
    # diffusers before 0.20: attn1.processor.to_q_lora.down.weight
    name = re.sub(r"\.processor\.(to_\w+)_lora\.", lambda m: f".{'to_out.0' if m[1] == 'to_out' else m[1]}.lora.", name)
    if name.endswith(".alpha"):
        return name.removesuffix(".alpha"), "alpha"
    for ending, leaf in _LEAVES.items():
        if name.endswith(ending):
            return name.removesuffix(ending), leaf
    return name, None


def _full_name(module: str, modules: set[str]) -> str | None:
    """The module as it is listed. peft's own files name no component: it is the U-Net then."""
    if module in modules:
        return module
    return f"unet.{module}" if f"unet.{module}" in modules else None


def _alphas_of(metadata: Mapping[str, str], modules: set[str]) -> dict[str, float]:
    if _METADATA not in metadata:
        return {}
    config = json.loads(metadata[_METADATA])
    alphas = {}
    for module in modules:
        component, _, short = module.partition(".")
        pattern = config.get(f"{component}.alpha_pattern") or {}
        alpha = pattern.get(short, config.get(f"{component}.lora_alpha"))
        if alpha is not None:
            alphas[module] = float(alpha)
    return alphas


def _commonest(values: Iterable) -> float:
    values = list(values)
    return max(sorted(set(values)), key=values.count)


def _plain(value: float) -> float | int:
    return int(value) if float(value).is_integer() else value
