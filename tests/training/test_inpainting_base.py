"""Fine-tuning an inpainting model of diffusers, small, on emoji: random masks, a LoRA and every weight."""

import pytest
import torch

import ldm
from tests.interop.models import diffusers, write_tokenizer
from tests.interop.test_inpainting import IMAGE, MASK, PROMPT, quick_gelu, write_inpainting
from tests.training.test_sdxl import train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    root = tmp_path_factory.mktemp("inpainting")
    quick_gelu().save_pretrained(root / "text_encoder")
    write_tokenizer(root / "tokenizer")
    return write_inpainting(root / "diffusers", root)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_it_learns_with_random_masks_and_still_is_an_inpainting_model(kind, base, tmp_path):
    run = train(base, tmp_path, f"finetune={kind}")
    options = {"image": IMAGE, "mask": MASK, "steps": 2, "output": "pt"}
    before, model = ldm.load(base), ldm.load(run)
    ours = model(PROMPT, **options)
    inside = MASK.expand_as(IMAGE) == 1
    assert (ours - before(PROMPT, **options))[inside].std() > 1e-3
    assert torch.equal(ours[~inside], IMAGE[~inside])
    if kind == "lora":
        model.merge_lora()
    model.export(tmp_path / "out")
    assert type(diffusers.DiffusionPipeline.from_pretrained(tmp_path / "out")).__name__.endswith("InpaintPipeline")
    torch.testing.assert_close(ldm.load(tmp_path / "out")(PROMPT, **options), ours, atol=1e-4, rtol=0)
