"""CLIP score: how well images fit their captions (Hessel et al. 2021), by a local folder of transformers."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from ldm.common.errors import UserError
from ldm.conditioning.text.encoders import fingerprint
from ldm.evaluation.published.embedders import SHOW_PROGRESS, in_float32
from ldm.evaluation.published.images import Images

NAME = "CLIP score"


class ClipScore:
    """100 max(0, cosine of an image's and its caption's embeddings), as torchmetrics has it (Hessel et al. weight by
    2.5 in place of 100). `protocol` says it in words."""

    def __init__(self, folder: str, device: str = "cpu"):
        self.model, self.processor = _opened(folder)
        self.model.to(device)
        self.device, self.most = device, self.model.config.text_config.max_position_embeddings
        self.cut = 0  # captions that didn't fit
        self.protocol = {
            "features": f"CLIP, {self.model.config.projection_dim} of the joint space",
            "weights": fingerprint(folder)[:16],
            "resizing": f"that of its folder ({_sizes(self.processor.image_processor.size)})",
        }

    def figures(self, images: Images, batch_size: int) -> dict[str, Any]:
        """The mean over images with `texts`, its standard error, and how many captions were longer than CLIP takes."""
        assert images.texts is not None
        self.cut, found, done = 0, [], 0
        bar = tqdm(desc=f"{NAME} of {images.what}", total=images.count, disable=images.count < SHOW_PROGRESS)
        with bar:
            for batch in images.batches(batch_size):
                found.append(self(batch, images.texts[done : done + len(batch)]))
                done += len(batch)
                bar.update(len(batch))
        scores = torch.cat(found).double()
        error = float(scores.std() / len(scores) ** 0.5)
        found_too = {f"standard error of the {NAME}": error, f"captions cut to CLIP's {self.most} tokens": self.cut}
        return {NAME: float(scores.mean()), **found_too}

    @torch.inference_mode()
    def __call__(self, images: Sequence[Tensor], texts: Sequence[str]) -> Tensor:
        """The scores (B,) of RGB images (3, H, W) uint8 and their captions."""
        pixels = self.processor.image_processor(list(images), return_tensors="pt")["pixel_values"]
        tokens = self.processor.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.most, return_tensors="pt"
        )
        lengths = self.processor.tokenizer(list(texts))["input_ids"]
        self.cut += sum(len(ids) > self.most for ids in lengths)
        with in_float32():
            output = self.model(pixel_values=pixels.to(self.device), **tokens.to(self.device))
        cosine = F.cosine_similarity(output.image_embeds, output.text_embeds)
        return 100 * cosine.clamp(min=0).float().cpu()


def _sizes(size: Any) -> str:
    """An image processor's size, a mapping or an object of it, in words."""
    known = size if isinstance(size, dict) else vars(size)
    return ", ".join(f"{key} {value}" for key, value in known.items() if value)


def _opened(folder: str) -> tuple[Any, Any]:
    try:
        import transformers
    except ImportError:
        raise UserError("clip= needs transformers: pip install 'ldm[hf]'.") from None
    if not Path(folder).expanduser().is_dir():
        raise UserError(
            f"clip={folder}: there is no such folder; name one with CLIP's config.json, weights, tokenizer."
        )
    logging.getLogger("transformers.tokenization_utils_base").setLevel(logging.ERROR)  # we count long captions
    try:
        kind = transformers.AutoConfig.from_pretrained(folder, local_files_only=True).model_type
        if kind != "clip":
            raise UserError(f"clip={folder} holds a model of kind {kind}; name a folder of CLIP, images and text.")
        model = transformers.CLIPModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
        processor = transformers.CLIPProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError) as error:
        first = str(error).strip().splitlines()[0][:160]
        raise UserError(f"clip={folder} can't be read ({first}); fetch the whole folder again.") from None
    return model.eval().requires_grad_(False), processor
