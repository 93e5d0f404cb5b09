"""The names that tools give to the parts of a LoRA."""

import re
from collections.abc import Iterable

from ldm.conditioning.text.clip_names import TEXT_MODEL, canonical
from ldm.interop.lora import kinds

_PEFT = "base_model.model."
KOHYA = {"unet": "lora_unet", "text_encoder": "lora_te", "text_encoder_2": "lora_te2"}
ALPHA, DORA_SCALE = "alpha", "dora_scale"  # LyCORIS's magnitudes of a DoRA, with dimensions of their own
_LEAVES = {  # what formats call them, the newest of diffusers first
    **{f".{leaf}": leaf for leaf in kinds.LEAVES},
    ".lora_magnitude_vector.weight": kinds.MAGNITUDE,
    ".lora.down.weight": kinds.DOWN,
    ".lora.up.weight": kinds.UP,
    ".lora_linear_layer.down.weight": kinds.DOWN,
    ".lora_linear_layer.up.weight": kinds.UP,
    ".lora_down.weight": kinds.DOWN,
    ".lora_up.weight": kinds.UP,
    ".dora_scale": DORA_SCALE,
    ".lora.alpha": ALPHA,
    ".alpha": ALPHA,
}
_OLD_UNET = {"to_out": "to_out.0"}
_OLD_TEXT = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}
_OTHERS = {  # by what is in a tensor's name
    "lora_mid": "LoCon with a Tucker decomposition",
    "oft_": "OFT",
    "boft_": "BOFT",
    "ia3_": "IA3",
    "lora_embedding_": "a LoRA of an embedding",
    "lora_B.bias": "a LoRA with biases",
    ".diff": "full differences of weights",
    "lora_te2_": "a second text encoder",
    "text_encoder_2.": "a second text encoder",
}


def has_peft_names(names: Iterable[str]) -> bool:
    """Whether a file's tensors have the names that peft itself writes."""
    return any(name.startswith(_PEFT) for name in names)


def is_of_text(name: str) -> bool:
    """Whether a tensor belongs to a text encoder, whoever wrote its name."""
    return canonical(name.removeprefix(_PEFT)).startswith(("text_encoder", "lora_te", TEXT_MODEL))


def split(name: str) -> tuple[str, str | None]:
    """A tensor's module and its role there: a leaf of `kinds`, "alpha" or "dora_scale"; None for any other tensor."""
    name = name.removeprefix(_PEFT)
    name = re.sub(r"\.default(\.weight)?$", r"\1", name)  # as peft calls them in memory
    # diffusers before 0.20: attn1.processor.to_q_lora.down.weight, self_attn.to_q_lora.down.weight
    name = re.sub(r"\.processor\.(to_\w+)_lora\.", lambda m: f".{_OLD_UNET.get(m[1], m[1])}.lora.", name)
    name = re.sub(r"\.self_attn\.(to_\w+)_lora\.", lambda m: f".self_attn.{_OLD_TEXT.get(m[1], m[1])}.lora.", name)
    for ending, leaf in _LEAVES.items():
        if name.endswith(ending):
            return name.removesuffix(ending), leaf
    return name, None


def unsupported(names: Iterable[str]) -> str:
    """The kinds of adapter that these names of tensors indicate and that aren't supported here."""
    names = list(names)
    found = {kind: name for sign, kind in _OTHERS.items() for name in names if sign in name}
    return ", ".join(f"{kind} ({name})" for kind, name in found.items())
