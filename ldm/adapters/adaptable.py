"""The part of a model that puts adapters on it."""

from pathlib import Path
from typing import Any

from ldm.adapters.adapter import Adapter
from ldm.adapters.controlnet import Control, check_span, open_control
from ldm.adapters.few_steps import set_sampling_defaults
from ldm.adapters.textual_inversion import WordEmbedding
from ldm.adapters.with_lora import WithLora
from ldm.common.annotations import check_arguments
from ldm.common.errors import UserError
from ldm.interop import hub


class Adaptable(WithLora):
    """A model that can have adapters on it. `adapters` maps each name to the adapter and its scale."""

    adapters: dict[str, tuple[Adapter, float]]
    base_hash: str | None = None  # the hash of the model as it was loaded, before any adapter was put on

    @check_arguments
    def put_on(self, adapter: Adapter, name: str, scale: float = 1.0, where: str = "", force: bool = False) -> None:
        """Puts an adapter on the model under `name`. Raises UserError for one of another base, unless forced."""
        if name in self.adapters:
            raise UserError(f"there is an adapter '{name}' on this model already: give another name=.")
        adapter.check_base(self, where or name, force)
        adapter.attach(self, name, scale)
        self.adapters[name] = (adapter, scale)
        set_sampling_defaults(self)

    @check_arguments
    def load_controlnet(
        self,
        path: str | Path,
        scale: float = 1.0,
        *,
        start: float = 0.0,
        end: float = 1.0,
        name: str | None = None,
        force: bool = False,
    ) -> None:
        """Adds the ControlNet at `path`: a run, a model folder, a diffusers folder, a CompVis checkpoint, or the
        address of one of these on the hub, `hf://OWNER/NAME[/PATH]`.

        Its residuals are multiplied by `scale`, in the steps from the share `start` to the share `end` of all, for
        images with a control image (`control=`). Several ControlNets add up. Its `name` is that of its run or folder
        unless given.
        """
        check_span(start, end)
        path = hub.local(path)
        control = open_control(path)
        control.start, control.end = start, end
        folder = path.parent if path.name == "model" else path
        self.put_on(control, name or hub.name_of(folder), scale, where=str(path), force=force)

    def bare(self, what: str, controlnets: bool = False) -> Any:
        """The model itself, ready to be saved. Raises UserError if an adapter on it would be missing from the file.

        Some files hold `controlnets` too. `what` starts the message.
        """
        held = (WordEmbedding, Control) if controlnets else WordEmbedding
        lost = [name for name, (adapter, _) in self.adapters.items() if not isinstance(adapter, held)]
        if lost:
            raise UserError(f"{what}: {', '.join(lost)} would be lost; merge_lora() makes a LoRA part of the model.")
        return self
