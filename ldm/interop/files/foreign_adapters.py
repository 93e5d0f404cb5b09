"""Kinds of adapters of other tools that aren't read, recognised by the names of their tensors."""

from collections.abc import Iterable

_BY_START = {
    "lllite_": "a ControlNet-LLLite, which isn't read",
    "adapter.": "a T2I-Adapter, which isn't read",
    "controlnet_cond_embedding.": "a ControlNet under diffusers' names, without its settings: put it into a folder as "
    "diffusion_pytorch_model.safetensors, with its config.json, and name the folder",
    "lora_": "a LoRA: load it with load_lora",
}


def adapter_in(names: Iterable[str]) -> str:
    """What a file with these tensors holds, and what to do about it."""
    names = sorted(names)
    if "lora_controlnet" in names:
        return "a Control-LoRA, which isn't read: get the whole ControlNet"
    for start, words in _BY_START.items():
        if any(name.startswith(start) for name in names):
            return words
    return f"{names[0][:80] if names else 'no tensors'}, which isn't a supported adapter"
