# mypy: disable-error-code="attr-defined,operator,index"
"""The conditions of an ldm model, text by its own encoder and class labels, as a model of diffusers."""

from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from ldm.conditioning.class_label import ClassLabel
from ldm.conditioning.conditioner import merge
from ldm.conditioning.text.trained import Text
from ldm.networks.cond import Cond


class _Parts(nn.Module):
    def __init__(self, parts: dict[str, nn.Module]):
        super().__init__()
        self.parts = nn.ModuleDict(parts)


class LdmConditioner(ModelMixin, ConfigMixin):
    """Converts prompts and labels to `Cond`; the null condition stands for those that aren't given."""

    @register_to_config
    def __init__(self, spec: dict[str, Any]):
        super().__init__()
        kinds = {"Text": Text, "ClassLabel": ClassLabel}
        parts = {
            name: kinds[part["class"]](**{key: value for key, value in part.items() if key != "class"})
            for name, part in spec["parts"].items()
        }
        self.network = _Parts(parts)

    def forward(self, given: dict[str, list], n: int) -> Cond:
        """`given` maps "text" and "label" to lists of `n` values."""
        device = next(self.parameters()).device
        conds = []
        for part in self.network.parts.values():
            values: Any = part.parse(given[part.column]) if part.column in given else part.null_values(n)
            conds.append(part(values.to(device) if isinstance(values, Tensor) else values))
        return merge(conds)

    @torch.no_grad()
    def null(self, n: int) -> Cond:
        """The null condition for `n` samples."""
        return self({}, n)
