"""FID's Inception: names and values are those of torch-fidelity's network, and other networks' weights are refused."""

from pathlib import Path
from typing import Any

import pytest
import torch

from ldm.common.errors import UserError
from ldm.evaluation.measures import inception as module
from ldm.evaluation.measures.inception import Inception, Mixed, read_weights

fidelity: Any = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")


def test_the_names_and_shapes_are_those_of_the_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fidelity, "load_state_dict_from_url", lambda *args, **kwargs: {})
    monkeypatch.setattr(fidelity.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
    with torch.device("meta"):
        theirs = fidelity.FeatureExtractorInceptionV3("fid", ["2048"]).state_dict()
        ours = Inception().state_dict()
    shapes = {name: value.shape for name, value in theirs.items() if not name.startswith("fc.")}
    assert {name: value.shape for name, value in ours.items()} == shapes


@pytest.mark.parametrize(
    ("ours", "theirs", "options"),
    [
        (module._block_a(4), "InceptionA", {"pool_features": 4}),
        (module._BLOCK_B, "InceptionB", {}),
        (module._block_c(4), "InceptionC", {"channels_7x7": 4}),
        (module._BLOCK_D, "InceptionD", {}),
        (module._block_e("average"), "InceptionE_1", {}),
        (module._block_e("maximum"), "InceptionE_2", {}),
    ],
)
def test_each_block_computes_what_torch_fidelity_s_does(ours: Any, theirs: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    block = Mixed(8, ours).eval()
    other = getattr(fidelity, theirs)(8, **options).eval()
    other.load_state_dict(block.state_dict())
    x = torch.randn(1, 8, 5, 5)
    with torch.no_grad():
        assert torch.equal(block(x), other(x))


def test_weights_of_other_networks_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    one = {module.RECOGNISED: torch.zeros(32, 3, 3, 3)}
    for content, words in (
        ({"a": torch.zeros(1)}, "no weights of Inception"),
        (one | {"fc.weight": torch.zeros(1000, 2048)}, "torchvision's Inception, whose distances aren't FID"),
        (one | {"AuxLogits.conv0.conv.weight": torch.zeros(1)}, "torchvision's Inception"),
        (one, "isn't a complete file of Inception's weights"),
    ):
        torch.save(content, file)
        with pytest.raises(UserError, match=words):
            read_weights(file)
    file.write_text("no")
    with pytest.raises(UserError, match="can't be read as weights"):
        read_weights(file)
