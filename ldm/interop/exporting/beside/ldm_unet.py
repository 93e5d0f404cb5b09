# mypy: disable-error-code="attr-defined"
"""The denoising network of ldm as a model of diffusers."""

from typing import Any

from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import Tensor

from ldm.networks.cond import Cond
from ldm.networks.dit import DiT
from ldm.networks.unet import UNet

NETWORKS = {"UNet": UNet, "DiT": DiT}


class LdmUNet(ModelMixin, ConfigMixin):
    """A UNet or DiT of ldm, called as UNet2DConditionModel is."""

    @register_to_config
    def __init__(self, spec: dict[str, Any], sample_size: list[int] | int | None = None):
        super().__init__()
        self.network = NETWORKS[spec["class"]](**{key: value for key, value in spec.items() if key != "class"})

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor | None = None,
        class_labels: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        guidance: Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        """`sample` (B, C, h, w), `timestep` () or (B,), and, if distilled, the guidance scale `guidance` (B,) -> (B, C,
        h, w)."""
        z = self.network.in_channels
        concat = sample[:, z:] if sample.shape[1] > z else None
        cond = Cond(class_labels, encoder_hidden_states, encoder_attention_mask, concat, guidance=guidance)
        raw = self.network(sample[:, :z], timestep.to(sample.device).expand(len(sample)), cond)
        return UNet2DConditionOutput(sample=raw) if return_dict else (raw,)
