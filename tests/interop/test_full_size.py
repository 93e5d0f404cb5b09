"""Stable Diffusion 1.5 at full size, with random weights: takes minutes and about 8 GB."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.interop.models import clip_config, diffusers, randomised, transformers, write_tokenizer

STEPS, SIDE = 4, 256  # steps that divide 1000: else the DDIM of diffusers steps to other levels than it evaluates

# of this process alone: getrusage's ru_maxrss would have the parent's peak, which lives on through exec
PEAK = """
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM:")))
"""
OURS = f"""
import sys, torch, ldm
from ldm.model.generate import ImageNoise
model, kept = ldm.load(sys.argv[1]), []
sigma = model.denoiser.parameterization.sigma_max
noise = ImageNoise([0], (4, {SIDE // 8}, {SIDE // 8}), torch.device("cpu"))()
picture = model("a cat", steps={STEPS}, size={SIDE}, output="pt", on_step=lambda i, n, d: kept.append(d))
torch.save((picture / 2 + 0.5, kept[-1], noise * sigma / (1 + sigma**2) ** 0.5), sys.argv[2])
{PEAK}"""
THEIRS = f"""
import sys, torch, diffusers
torch.set_grad_enabled(False)
pipe = diffusers.DiffusionPipeline.from_pretrained(sys.argv[1])
*_, start = torch.load(sys.argv[2])
options = dict(num_inference_steps={STEPS}, guidance_scale=7.5, height={SIDE}, width={SIDE}, prompt="a cat")
latent = pipe(latents=start, output_type="latent", **options).images
picture = pipe.image_processor.postprocess(pipe.vae.decode(latent / pipe.vae.config.scaling_factor).sample, "pt")
torch.save((picture, latent), sys.argv[3])
{PEAK}"""


@pytest.mark.slow
def test_stable_diffusion_at_full_size_generates_diffusers_image_in_no_more_memory(tmp_path):
    make(tmp_path / "sd")
    ours = run(OURS, tmp_path / "sd", tmp_path / "ours.pt")
    theirs = run(THEIRS, tmp_path / "sd", tmp_path / "ours.pt", tmp_path / "theirs.pt")
    (image, latents, _), (expected, latent) = torch.load(tmp_path / "ours.pt"), torch.load(tmp_path / "theirs.pt")
    assert (latents - latent).norm() / latent.norm() < 1e-3
    assert expected.std() > 0.05
    assert -10 * (image - expected).square().mean().log10() > 45
    print(f"peak {ours / 2**20:.2f} GB, diffusers {theirs / 2**20:.2f} GB")
    assert ours <= theirs


def run(code: str, *arguments: Path) -> int:
    """Peak resident memory in kB of a process of its own."""
    command = [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])


def make(folder: Path) -> None:
    """Stable Diffusion 1.5's U-Net and VAE, and a small text encoder of its width."""
    unet = diffusers.UNet2DConditionModel(
        sample_size=64, cross_attention_dim=768, block_out_channels=(320, 640, 1280, 1280), attention_head_dim=8
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        sample_size=512,
    )
    text = transformers.CLIPTextModel(clip_config(dim=768, layers=1))
    scheduler = {"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear", "beta_start": 0.00085}
    scheduler |= {"beta_end": 0.012, "clip_sample": False, "set_alpha_to_one": True, "timestep_spacing": "trailing"}
    randomised(unet, 0.01).save_pretrained(folder / "unet")
    randomised(vae, 0.02).save_pretrained(folder / "vae")
    text.save_pretrained(folder / "text_encoder")
    write_tokenizer(folder / "tokenizer")
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    parts = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "scheduler": "DDIMScheduler"}
    index = {name: ["diffusers", kind] for name, kind in parts.items()}
    index |= {"text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"]}
    index |= dict.fromkeys(("safety_checker", "feature_extractor", "image_encoder"), [None, None])
    index |= {"_class_name": "StableDiffusionPipeline", "requires_safety_checker": False}
    (folder / "model_index.json").write_text(json.dumps(index))
