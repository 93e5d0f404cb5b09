"""Frozen image encoders: their files, how they are loaded, and the states that they compute for an image."""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ldm.common.devices import send
from ldm.common.errors import UserError, did_you_mean
from ldm.conditioning.text.encoders import fingerprint
from ldm.conditioning.text.loaded_weights import READING, check_loaded, check_positions
from ldm.networks.computing.finite import not_finite

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
States = Callable[[Tensor], Tensor]  # normalised images (B, 3, S, S) -> the pooled state and L others, (B, 1 + L, D)


def hash_of_encoder(encoder: str, weights: str | None) -> str:
    """SHA-256 of the encoder: of the files in its folder, or of its file of weights."""
    if weights is None:
        return fingerprint(encoder)
    path = Path(weights)
    return fingerprint(path.parent, (path.name,))


def check_encoder(encoder: str, weights: str | None) -> None:
    """Raises UserError if the encoder's folder or file isn't on disk."""
    if weights is None and not Path(encoder).is_dir():
        raise UserError(
            f"conditioner: there is no folder '{encoder}'. Name the folder of a vision encoder of transformers, or a "
            "model of torchvision with weights=FILE, its state dict; nothing is downloaded."
        )
    if weights is not None and not Path(weights).is_file():
        raise UserError(f"conditioner: there are no weights at '{weights}'; name a file with a state dict.")


def load_states(encoder: str, weights: str | None) -> tuple[nn.Module, States]:
    """The frozen encoder, and the function that computes its states for normalised images."""
    check_encoder(encoder, weights)
    model, states = _transformers(encoder) if weights is None else _torchvision(encoder, weights)
    return model.eval().requires_grad_(False), states


def normalised(images: Tensor, size: int, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Images (B, C, H, W) in [-1, 1] as inputs of an encoder: RGB of `size` x `size`, normalised by mean and std."""
    images = images[:, :1].expand(-1, 3, -1, -1) if images.shape[1] < 3 else images[:, :3]
    images = F.interpolate(images, (size, size), mode="bicubic", antialias=True).clamp(-1, 1) / 2 + 0.5
    middle, spread = (send(torch.tensor(values), images.device)[:, None, None] for values in (mean, std))
    return (images - middle) / spread


def _torchvision(name: str, weights: str) -> tuple[nn.Module, States]:
    """A classifier of torchvision; its pooled state is the input of its last linear layer."""
    state = _read(weights)
    model = _model_of(name, state)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"{weights} doesn't fit {name}: {str(error).splitlines()[-1].strip()}") from None
    if bad := not_finite(state):
        raise UserError(f"{weights} is damaged: {bad[0]} isn't finite; restore it.")
    heads = [(path, layer) for path, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    if not heads:
        raise UserError(
            f"{name} has no linear layer from whose input a pooled state could be taken: choose another encoder."
        )
    seen: dict[str, Tensor] = {}
    heads[-1][1].register_forward_pre_hook(lambda _, inputs: seen.__setitem__("pooled", inputs[0]))
    pools = [m for m in model.modules() if isinstance(m, (nn.AdaptiveAvgPool2d, nn.AvgPool2d))]
    if pools:
        pools[-1].register_forward_pre_hook(lambda _, inputs: seen.__setitem__("positions", inputs[0]))

    def states(images: Tensor) -> Tensor:
        """Normalised images (B, 3, S, S) -> states (B, 1 + L, D)."""
        model(images)
        return _joined(seen["pooled"], seen.get("positions"))

    return model, states


def _model_of(name: str, state: dict[str, Tensor]) -> nn.Module:
    import torchvision.models as zoo

    if name not in zoo.list_models(zoo):
        raise UserError(f"torchvision has no model '{name}'.{did_you_mean(name, zoo.list_models(zoo))}")
    classes = [tensor.shape[0] for tensor in state.values() if tensor.ndim == 2]  # the last linear layer's rows
    return zoo.get_model(name, weights=None, num_classes=classes[-1] if classes else 1000)


def _read(weights: str) -> dict[str, Tensor]:
    """The state dict in a .safetensors or a torch file, without running code from it."""
    try:
        if weights.endswith(".safetensors"):
            from safetensors.torch import load_file

            return load_file(weights)
        state = torch.load(weights, map_location="cpu", weights_only=True)
        return state.get("state_dict", state)
    except Exception as error:  # a damaged file may raise anything
        reason = str(error).splitlines()[0] if str(error) else ""
        raise UserError(f"{weights} can't be read as a state dict ({type(error).__name__}: {reason[:120]}).") from None


def _transformers(path: str) -> tuple[nn.Module, States]:
    try:
        import transformers
    except ImportError:
        raise UserError("a Hugging Face vision encoder needs transformers: pip install 'ldm[hf]'.") from None
    what = f"the vision encoder at '{path}'"
    sides = {"clip": "CLIPVisionModel", "clip_vision_model": "CLIPVisionModel", "siglip": "SiglipVisionModel"}
    try:
        config = transformers.AutoConfig.from_pretrained(path, trust_remote_code=False)
        cls = getattr(transformers, sides.get(config.model_type, "AutoModel"))
        model, info = cls.from_pretrained(path, **READING)
    except (OSError, ValueError) as error:
        raise UserError(f"there is no vision encoder at '{path}' ({str(error).splitlines()[0][:120]}).") from None
    except Exception as error:  # of settings or shapes that don't fit, which each version reports in another way
        reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else ""
        raise UserError(
            f"{what} can't be built from its config.json ({type(error).__name__}: {reason}): correct it, or download "
            "the encoder again."
        ) from None
    check_loaded(model, info, config, what)
    check_positions(Path(path), None, what, "text_model.")

    def states(images: Tensor) -> Tensor:
        """Normalised images (B, 3, S, S) -> states (B, 1 + L, D)."""
        output = model(pixel_values=images)
        pooled = getattr(output, "pooler_output", None)
        return _joined(None if pooled is None else pooled.flatten(1), output.last_hidden_state)

    return model, states


def _joined(pooled: Tensor | None, positions: Tensor | None) -> Tensor:
    """The pooled state, and those of the positions if they have the same width: (B, 1 + L, D)."""
    if positions is not None and positions.ndim == 4:
        positions = rearrange(positions, "b d h w -> b (h w) d")
    if pooled is None:
        assert positions is not None
        pooled = positions.mean(1)
    pooled = pooled.flatten(1)[:, None].float()  # (B, 1, D)
    if positions is None or positions.shape[2] != pooled.shape[2]:
        return pooled
    return torch.cat([pooled, positions.float()], 1)
