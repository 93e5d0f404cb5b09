"""16 images at 20 steps with guidance: ours against diffusers' StableDiffusionPipeline on the same weights.

A pipeline with random weights is written as diffusers writes it and opened by both. Both start from the same noise with
the same number of network evaluations, and the images are compared. Separately: ours with guidance only in an interval
of noise levels, which saves evaluations.
"""

import tempfile
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from torch import Tensor, nn

import ldm
from benchmarks.paired import Call, alternate, compared, rows
from benchmarks.unet_step import diffusers_unet
from benchmarks.vae_step import LATENT, diffusers_vae
from ldm.model.generate import ImageNoise

IMAGES, STEPS, GUIDANCE, TOKENS = 16, 20, 3.0, 12
WORDS = ("a", "cat", "above", "rocket", "on", "blue", "background")
PROMPT = "a cat above a rocket on a blue background"
CONTEXT = 128


def spread_out(network: nn.Module, std: float) -> nn.Module:
    """Gives zero-initialised layers weights, and norms a spread: else images are grey and agree with any sampler."""
    for parameter in network.parameters():
        nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 and parameter.mean() > 0.5 else 0.0, std)
    return network.eval()


def write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocab = {word: i for i, word in enumerate(("<|endoftext|>", "<|startoftext|>", *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<|endoftext|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    marks = dict.fromkeys(("unk_token", "eos_token", "pad_token"), "<|endoftext|>")
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|startoftext|>", model_max_length=TOKENS, **marks
    )
    fast.save_pretrained(folder)


def pipeline(side: int) -> Any:
    """A small StableDiffusionPipeline with latents of `side`, all weights random."""
    torch.manual_seed(0)
    text = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=len(WORDS) + 2,
            hidden_size=CONTEXT,
            intermediate_size=2 * CONTEXT,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=TOKENS,
            eos_token_id=0,
            bos_token_id=1,
            pad_token_id=0,
        )
    )
    scheduler = diffusers.DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        timestep_spacing="trailing",
        steps_offset=1,
        set_alpha_to_one=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder))
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return diffusers.StableDiffusionPipeline(
        vae=spread_out(diffusers_vae(), 0.1),
        text_encoder=text.eval(),
        tokenizer=tokenizer,
        unet=spread_out(diffusers_unet(side, cross=True), 0.04),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@torch.inference_mode()
def measure(side: int, rounds: int, folder: str) -> dict[str, Any]:
    theirs = pipeline(side)
    theirs.set_progress_bar_config(disable=True)
    theirs.save_pretrained(folder)
    ours = ldm.load(folder)
    noise = ImageNoise(range(IMAGES), (LATENT, side, side), torch.device("cpu"))()
    size = 4 * side
    options = {"n": IMAGES, "size": size, "seed": 0, "sampler": "ddim", "steps": STEPS, "output": "pt"}

    def plain(**more: Any) -> Tensor:
        return ours(PROMPT, guidance=GUIDANCE, **options, **more)

    def pipe() -> Tensor:
        given = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "height": size, "width": size}
        return theirs([PROMPT] * IMAGES, latents=noise, output_type="pt", **given).images

    # guided where it matters: in the middle third of the steps
    levels = ours.denoiser.parameterization.grid(STEPS, ours.sampling["spacing"]).tolist()
    interval = [levels[2 * STEPS // 3], levels[STEPS // 3]]
    calls: dict[str, Call] = {"ours": plain, "diffusers": pipe, "ours, skipping": lambda: plain(interval=interval)}
    own, expected = (plain() + 1) / 2, pipe()
    found = compared(alternate(calls, rounds))
    error = (own - expected).square().mean()
    return found | {
        "PSNR, dB": float(-10 * error.clamp_min(1e-14).log10()),
        "std of images": float(expected.std()),
    }


def main(rounds: int = 3) -> dict[str, Any]:
    report = {}
    for side in (8, 16):
        with tempfile.TemporaryDirectory() as folder:  # the text encoder is read from it when it is needed
            report[f"latents of {side}x{side}"] = rows(measure(side, rounds, folder), 1.0)
    return report
