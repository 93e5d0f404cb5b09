"""The same LoRA in diffusers' U-Net, by diffusers' own way through peft, and in ours."""

from types import SimpleNamespace

import pytest
import torch

from ldm.adapters import LoraAdapter
from ldm.common.registry import build
from ldm.conditioning import Conditioner
from ldm.interop.parts import unet_config
from ldm.networks import Cond
from tests.interop.configs import UNETS
from tests.interop.models import diffusers, randomised

peft = pytest.importorskip("peft")
TARGETS = {
    "attention": ["to_q", "to_k", "to_v", "to_out.0"],
    "convolutions too": ["to_q", "to_out.0", "conv1", "conv_shortcut", "proj_in", "linear_2"],
}


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("config", ["sd 1", "linear"])
def test_ours_computes_what_diffusers_unet_does(config, targets):
    torch.manual_seed(0)
    theirs = randomised(diffusers.UNet2DConditionModel(**UNETS[config]))
    ours = build(unet_config.from_diffusers(theirs.config))
    ours.load_state_dict(unet_config.weights(theirs.state_dict(), theirs.config))
    ours.eval().requires_grad_(False)
    t = torch.tensor([3.0, 711.0])
    x, tokens = torch.randn(2, theirs.config.in_channels, 8, 8), torch.randn(2, 7, 12)
    plain = theirs(x, t, tokens).sample

    theirs.add_adapter(peft.LoraConfig(r=4, lora_alpha=6, target_modules=TARGETS[targets], init_lora_weights=False))
    state = peft.get_peft_model_state_dict(theirs)
    weights = {f"unet.{name}": 0.1 * torch.randn_like(tensor) for name, tensor in state.items()}
    peft.set_peft_model_state_dict(theirs, {name: weights[f"unet.{name}"] for name in state})
    adapter = LoraAdapter.of_tensors(weights, dict.fromkeys({n.rpartition(".lora_")[0] for n in weights}, 6.0))
    model = SimpleNamespace(denoiser=SimpleNamespace(network=ours), conditioner=Conditioner())
    adapter.attach(model, "theirs", 1.0)
    with torch.no_grad():
        wanted, got = theirs(x, t, tokens).sample, ours(x, t, Cond(tokens=tokens))
    assert (wanted - plain).abs().max() > 0.05, "a LoRA that changes nothing proves nothing"
    torch.testing.assert_close(got, wanted, atol=1e-5 * max(1, wanted.abs().max().item()), rtol=0)
