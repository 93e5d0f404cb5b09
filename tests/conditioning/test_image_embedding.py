"""Images by their meaning: frozen encoders from files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ldm.common.errors import UserError
from ldm.common.registry import build, spec_of
from ldm.conditioning import ImageEmbedding
from ldm.conditioning import image_encoders as vision
from ldm.data import Table
from ldm.images import Preprocess


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A ResNet-18 of ten classes with random weights, as a state dict."""
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("encoder") / "r18.pt"
    torch.save(models.resnet18(num_classes=10).state_dict(), path)
    return str(path)


def make(weights: str, **options: Any) -> ImageEmbedding:
    torch.manual_seed(0)
    spec = {"encoder": "resnet18", "weights": weights, "image_size": 64, "dim": 8, **options}
    return ImageEmbedding(**(spec | ImageEmbedding.derive(None, spec))).eval()


def test_the_embedding_is_what_the_last_layer_reads(weights: str) -> None:
    from torchvision.models import resnet18

    part, images = make(weights, tokens=True), torch.rand(2, 3, 32, 32) * 2 - 1
    classifier = resnet18(num_classes=10).eval()
    classifier.load_state_dict(torch.load(weights))
    classifier.fc = nn.Identity()
    states = part.embed(images)
    assert states.shape == (2, 1 + 4, 512)
    wanted = classifier(vision.normalised(images, 64, *vision.IMAGENET))
    torch.testing.assert_close(states[:, 0], wanted)
    torch.testing.assert_close(states[:, 1:].mean(1), wanted)  # the places, whose mean is the pooled state


def test_roles_and_null(weights: str) -> None:
    part = make(weights, tokens=True)
    values = part.prepare({"image": torch.rand(2, 3, 32, 32)}, lambda x: x, 0)
    cond = part(values)
    assert cond.vector.shape == (2, 8) and cond.tokens.shape == (2, 4, 8) and cond.mask.all()
    dropped, null = part(values, torch.tensor([True, False])), part(part.null_values(1))
    assert torch.equal(dropped.vector[:1], null.vector) and torch.equal(dropped.tokens[1], cond.tokens[1])
    plain = make(weights)
    assert plain.token_dim is None and plain(plain.null_values(3)).tokens is None


def test_the_encoder_is_no_part_of_the_model_and_is_read_late(weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_of(make(weights))
    monkeypatch.setattr(vision, "load_states", lambda *_: pytest.fail("read too early"))
    with torch.device("meta"):
        part = build(spec)
    assert not any("conv" in name for name in part.state_dict()) and len(part.state_dict()) == 4


def test_another_encoder_than_it_was_trained_with_is_refused(weights: str, tmp_path: Path) -> None:
    spec = spec_of(make(weights))
    state = torch.load(weights)
    state["fc.bias"] += 1
    torch.save(state, tmp_path / "r18.pt")
    with pytest.raises(UserError, match="isn't the one"):
        build({**spec, "weights": str(tmp_path / "r18.pt")}).embed(torch.zeros(1, 3, 8, 8))
    (tmp_path / "m").mkdir()
    Path(weights).with_name("copy.pt").write_bytes(Path(weights).read_bytes())
    (tmp_path / "m" / Path(weights).name).write_bytes(Path(weights).read_bytes())
    part = build({**spec, "weights": Path(weights).name})
    part.locate(tmp_path / "m")
    assert part.embed(torch.zeros(1, 3, 8, 8)).shape == (1, 1, 512)


def test_a_vision_encoder_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.CLIPVisionConfig(**sizes, image_size=16, patch_size=8)
    transformers.CLIPVisionModel(config).save_pretrained(tmp_path)
    table = Table(np.zeros((2, 1, 8, 8), np.uint8), {}, Preprocess(1, 8, 8), "k")
    spec: dict[str, Any] = {"encoder": str(tmp_path), "image_size": 16, "tokens": True, "dim": 8}
    derived = ImageEmbedding.derive(table, {"class": "ImageEmbedding", **spec})
    assert (derived["width"], derived["places"]) == (16, 5)  # class token and four places
    part = ImageEmbedding(**spec, **derived)
    grey = torch.rand(3, 1, 8, 8)  # grey images become RGB
    assert part(part.prepare({"embed_image": grey}, lambda x: x, 0)).tokens.shape == (3, 5, 8)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"encoder": "/nowhere"}, "no folder '/nowhere'"),
        ({"encoder": "resnet18", "weights": "/nowhere.pt"}, "no weights at"),
        ({"encoder": "resnet81"}, "no model 'resnet81'. Did you mean 'resnet18'"),
        ({"encoder": "vgg11"}, "doesn't fit vgg11"),
    ],
)
def test_mistakes_are_answered_in_words(weights: str, options: dict[str, Any], words: str) -> None:
    if "weights" not in options and not options["encoder"].startswith("/"):
        options = {**options, "weights": weights}
    with pytest.raises(UserError, match=words):
        ImageEmbedding.derive(None, options)
