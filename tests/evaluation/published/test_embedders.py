"""DINOv2 and CLIP by local folders: features and scores are those of transformers and torchmetrics."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.common.errors import UserError
from ldm.evaluation.published.clip_score import ClipScore
from ldm.evaluation.published.embedders import dinov2, in_float32, inception
from ldm.evaluation.published.images import Images
from tests.evaluation.published.models import write_clip, write_dinov2

transformers = pytest.importorskip("transformers")
CAPTIONS = ["a cat", "red", "dog"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    write_dinov2(root / "dinov2")
    write_clip(root / "clip")
    return root


class Unwrapped(transformers.CLIPModel):
    """CLIP with the tensors that torchmetrics expects, which later versions of transformers wrap."""

    def get_image_features(self, *args, **options):
        found = super().get_image_features(*args, **options)
        return getattr(found, "pooler_output", found)

    def get_text_features(self, *args, **options):
        found = super().get_text_features(*args, **options)
        return getattr(found, "pooler_output", found)


def noise(height: int, width: int, n: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(height)
    return torch.randint(0, 256, (n, 3, height, width), generator=generator, dtype=torch.uint8)


def test_dinov2_s_features_are_the_class_token_of_pillow_s_resizing(folders: Path) -> None:
    images = noise(40, 30)
    embedder = dinov2(str(folders / "dinov2"))
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    resized = [Image.fromarray(i.permute(1, 2, 0).numpy()).resize((224, 224), Image.Resampling.BICUBIC) for i in images]
    pixels = torch.from_numpy((np.stack([np.asarray(i) for i in resized]) / 255 - mean) / std).permute(0, 3, 1, 2)
    model = transformers.Dinov2Model.from_pretrained(folders / "dinov2").eval()
    with torch.inference_mode():
        expected = model(pixel_values=pixels.float()).pooler_output
        assert torch.allclose(embedder(images)[0], expected, atol=1e-3)
    assert embedder.width == 12 and len(embedder.protocol["weights"]) == 16


def test_images_of_several_sizes_make_one_batch(folders: Path) -> None:
    embedder = dinov2(str(folders / "dinov2"))
    mixed = [noise(40, 30)[0], noise(20, 50)[1]]
    together = embedder(mixed)[0]
    assert torch.allclose(together, torch.cat([embedder([image])[0] for image in mixed]), atol=1e-5)


def test_clip_score_is_torchmetrics(folders: Path) -> None:
    from torchmetrics.functional.multimodal import clip_score

    images = noise(20, 20)
    found = ClipScore(str(folders / "clip"))(images, CAPTIONS)
    model = Unwrapped.from_pretrained(folders / "clip").eval()
    processor = transformers.CLIPProcessor.from_pretrained(folders / "clip")
    each = [clip_score(i, text, lambda: (model, processor)) for i, text in zip(images, CAPTIONS, strict=True)]
    assert found.max() > 1 and torch.allclose(found, torch.stack(each).clamp(min=0), atol=1e-3)


def test_the_mean_counts_captions_that_were_cut(folders: Path) -> None:
    images = noise(20, 20)
    clip = ClipScore(str(folders / "clip"))
    texts = ["a cat", "a very long caption of many letters", "red"]
    found = clip.figures(Images("three", 3, lambda a, b: list(images[a:b]), texts=texts), batch_size=2)
    scores = clip(images, texts)
    assert found["captions cut to CLIP's 8 tokens"] == 1
    assert found["CLIP score"] == pytest.approx(float(scores.mean()), rel=1e-5)
    assert found["standard error of the CLIP score"] == pytest.approx(float(scores.std() / 3**0.5), rel=1e-4)


def test_folders_of_other_models_are_refused(folders: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds a model of kind clip; name a folder of DINOv2"):
        dinov2(str(folders / "clip"))
    with pytest.raises(UserError, match="holds a model of kind dinov2; name a folder of CLIP"):
        ClipScore(str(folders / "dinov2"))
    for make, name in ((dinov2, "dinov2"), (ClipScore, "clip")):
        with pytest.raises(UserError, match=f"{name}=.*there is no such folder"):
            make(str(tmp_path / "absent"))
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(UserError, match=f"{name}=.*can't be read"):
            make(str(tmp_path / "empty"))


def test_features_are_computed_in_full_float32_and_settings_restored() -> None:
    before = (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32)
    with in_float32():
        assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == ("highest", False)
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before


def test_an_unknown_resizing_is_refused_before_the_weights_are_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="resizing=cleen is unknown.*clean"):
        inception(tmp_path / "absent.pth", "cleen")
