"""LoRAs and new words on a model: load, scale, merge, unmerge, unload, export."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ldm.adapters import lora, textual_inversion
from ldm.adapters import lora_layers as layers
from ldm.adapters.adapter import Adapter, hash_of, read
from ldm.adapters.few_steps import set_sampling_defaults
from ldm.adapters.lora import LoraAdapter
from ldm.adapters.textual_inversion import WordEmbedding
from ldm.common.annotations import check_arguments
from ldm.common.errors import UserError, did_you_mean
from ldm.interop import hub
from ldm.interop.files import foreign_embeddings, user_metadata
from ldm.interop.lora import formats, writing

EXPORTS = (*formats.FORMATS, "peft")


@dataclass(frozen=True)
class Merged:
    """What `unmerge_lora` restores: LoRAs with their scales, and the earlier weights by component and layer."""

    adapters: dict[str, tuple[Adapter, float]]
    weights: dict[str, dict[str, Tensor]]


class WithLora:
    """A model with LoRAs, by name; all that are loaded act together, each with its scale."""

    adapters: dict[str, tuple[Adapter, float]]
    merged: Merged | None = None

    def put_on(self, adapter: Adapter, name: str, scale: float = 1.0, where: str = "", force: bool = False) -> None:
        """Puts an adapter on the model: see `Adaptable.put_on`."""
        raise NotImplementedError

    @check_arguments
    def load_lora(self, path: str | Path, scale: float = 1.0, name: str | None = None, force: bool = False) -> None:
        """Puts on the LoRA at `path`: a run, a model folder, a .safetensors file of diffusers, peft or kohya, or its
        folder, or an address of one of these on the hub, `hf://OWNER/NAME[/FILE]`. DoRA, LoHa and LoKr are LoRAs too.

        Its `name` is that of its run or file unless given. A LoRA that was trained on another base is refused unless
        forced; a file of another tool names no base, and is used if it fits. The weights of the base don't change.
        """
        path = hub.local(path).expanduser()
        hash_of(self)  # computed before anything is on the model
        file = formats.file_at(path)
        adapter = read(path) if file is None else lora.read_file(file, self)
        if not isinstance(adapter, LoraAdapter):
            raise UserError(f"{path} holds a {type(adapter).__name__}, not a LoRA: load it with ldm.load(...).")
        self.put_on(adapter, name or _name_of(path), scale, where=str(path), force=force)
        if file is not None:
            user_metadata.warn(file, scale, formats.metadata_of(file))

    @check_arguments
    def load_word(self, path: str | Path, force: bool = False, word: str | None = None) -> str:
        """Adds the word of a textual inversion to the model, and returns the word.

        `path` is a run, a model folder, a file of diffusers or A1111 (or its folder), or an address of one of these on
        the hub. `word` is what to call it, by default as it is called there; A1111's files are named after their word.
        """
        path = hub.local(path).expanduser()
        file = foreign_embeddings.file_at(path)
        if file is not None:
            named, rows = foreign_embeddings.read(file, word)
            adapter: Adapter = WordEmbedding.of_tensor(named, rows[0], None, *rows[1:])
        else:
            adapter = read(path)
        if not isinstance(adapter, WordEmbedding):
            raise UserError(
                f"{path} holds a {type(adapter).__name__}, not a textual inversion's word: load it with ldm.load(...)."
            )
        adapter.word = word or adapter.word
        self.put_on(adapter, adapter.word, 1.0, where=str(path), force=force)
        return adapter.word

    @check_arguments
    def export_word(self, out: str | Path, word: str, to: str = "diffusers") -> Path:
        """Writes a word of the model as a file of "diffusers" or of "a1111" for web UIs, and returns the file.

        `out` is a file whose ending is .safetensors, .bin or .pt, or a folder. Of two text encoders (Stable Diffusion
        XL) both have the embeddings in it, as `clip_l` and `clip_g`.
        """
        return foreign_embeddings.write(Path(out), word, textual_inversion.embeddings(self, word), to)

    @check_arguments
    def scale_lora(self, name: str, scale: float) -> None:
        """Sets the scale of the LoRA `name`: 0 is the base without it, 1 is as trained."""
        adapter = self._lora(name)
        formats.check_strength(adapter.lora, scale, f"the LoRA '{name}'")
        for _, module in lora.components(self, None).items():
            layers.scale(module, lora.inner_name(name), scale)
        self.adapters[name] = (adapter, scale)

    def unload_lora(self, name: str | None = None) -> None:
        """Removes the LoRA `name`, or all of them; the base is then bit for bit as before."""
        for one in self.loras if name is None else [name]:
            self._lora(one)
            for _, module in lora.components(self, None).items():
                layers.remove(module, lora.inner_name(one))
            del self.adapters[one]
        set_sampling_defaults(self)

    def merge_lora(self) -> None:
        """Adds all LoRAs to the weights. The model is then as fast as the base, and can be saved and exported.

        The earlier weights are kept in memory for `unmerge_lora`.
        """
        names = self.loras
        if not names:
            raise UserError("there is no LoRA to merge: load one with load_lora(path).")
        if self.merged:
            raise UserError("a LoRA is merged already: call unmerge_lora(), then load both and merge them.")
        if frozen := [name for name in names if lora.changes_frozen_text(self, self._lora(name))]:
            raise UserError(
                f"{', '.join(frozen)} changes the frozen text encoder too, which the model's file doesn't hold, so it "
                "can't be merged: leave it on, and load it again where the model is used."
            )
        weights = {kind: layers.merge(module) for kind, module in lora.components(self, None).items()}
        self.merged = Merged({name: self.adapters.pop(name) for name in names}, weights)

    def unmerge_lora(self) -> None:
        """Restores the weights from before `merge_lora`, bit for bit, and the LoRAs on them."""
        if not self.merged:
            raise UserError("no LoRA is merged.")
        merged, self.merged = self.merged, None
        for kind, module in lora.components(self, None).items():
            found = layers.adaptable(module)
            for where, weight in merged.weights.get(kind, {}).items():
                found[where].weight.data = weight.to(found[where].weight.device)
        for name, (adapter, scale) in merged.adapters.items():
            adapter.attach(self, name, scale)
            self.adapters[name] = (adapter, scale)

    def export_lora(self, out: str | Path, to: str = "diffusers", name: str | None = None) -> Path:
        """Writes the LoRA `name`, or the only one: as a .safetensors file for diffusers (LoRA and DoRA) or for kohya's
        tools and web UIs (LoHa and LoKr too), or with to="peft" as a folder of peft's.
        """
        names = self.loras
        if name is None and len(names) != 1:
            raise UserError(
                f"give the name= of the LoRA to export: {', '.join(names) or 'there is none on this model'}."
            )
        out, chosen = Path(out), self._lora(name or names[0]).lora
        if to not in EXPORTS:
            raise UserError(f"to={to} isn't a LoRA format.{did_you_mean(to, EXPORTS)}")
        if to == "peft":
            if out.suffix == ".safetensors":
                raise UserError(f"to=peft writes a folder, and {out} names a file: leave the ending out.")
            return writing.to_peft(out, chosen, lora.weight_shapes(self))
        if out.suffix != ".safetensors":
            out = out / "pytorch_lora_weights.safetensors"  # where diffusers looks
        out.parent.mkdir(parents=True, exist_ok=True)
        formats.write(out, chosen, to, lora.xl_modules(self))
        return out

    @property
    def loras(self) -> list[str]:
        """The names of the LoRAs on the model, without merged ones."""
        return [name for name, (adapter, _) in self.adapters.items() if isinstance(adapter, LoraAdapter)]

    def _lora(self, name: str) -> Any:
        if name not in self.loras:
            raise UserError(f"there is no LoRA '{name}' on this model.{did_you_mean(name, self.loras)}")
        return self.adapters[name][0]


def _name_of(path: Path) -> str:
    path = path if path.is_file() or hub.origin_of(path) else path.resolve()
    return hub.name_of(path.parent if path.name == "model" else path)
