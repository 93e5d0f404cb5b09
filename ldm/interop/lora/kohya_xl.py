"""kohya's names of the layers of Stable Diffusion XL's U-Net: Stability AI's, with underscores."""

from collections.abc import Iterable

from ldm.interop.files.name_tables import bijection, by_prefix
from ldm.interop.parts import compvis

_UNET = "unet."


def kohya_names(modules: Iterable[str]) -> dict[str, str]:
    """{ours: kohya's} for the layers of a whole U-Net among `modules` (`unet.down_blocks.0...`); empty for another
    model."""
    names = [module.removeprefix(_UNET) for module in modules if module.startswith(_UNET)]
    levels = compvis.indices(names, "down_blocks.")
    if not levels or "conv_in" not in names:
        return {}
    blocks = len(compvis.indices(names, "down_blocks.0.resnets."))
    attends = [any(name.startswith(f"down_blocks.{i}.attentions.") for name in names) for i in levels]
    places = compvis.unet_modules(attends, blocks)
    parts = {f"{part}": place for part, place in compvis.UNET_RESNET.items()}
    inner = {f"{name}.weight" for name in names if ".resnets." in name}
    table = by_prefix(inner, places, parts) | by_prefix({f"{name}.weight" for name in names} - inner, places, {})
    plain = ((ours.removesuffix(".weight"), theirs.removesuffix(".weight")) for ours, theirs in table.items())
    return bijection((_UNET + ours, f"lora_unet_{theirs.replace('.', '_')}") for ours, theirs in plain)
