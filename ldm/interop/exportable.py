"""The part of a model that writes it for others: as files of other tools, and to the hub."""

from pathlib import Path
from typing import Any

from torch import nn


class Exportable(nn.Module):
    """A model that can be exported and pushed."""

    origin: str | None = None  # the address on the hub, with the commit, that it was loaded from

    def export(self, out: str | Path, to: str = "diffusers", dtype: str | None = None) -> Any:
        """Writes the model to the folder `out` for other tools; the report says which parts are stock classes there.

        `to` is "diffusers", or "ldm" for a model folder that includes the files of a frozen text encoder. A ControlNet
        on the model is exported to diffusers too, if the model is a StableDiffusionPipeline there. "single_file" writes
        the file `out`, which ComfyUI and A1111 open. `dtype` is "float16", "bfloat16" or "float32".
        """
        from ldm.interop.export import export

        return export(self, out, to, dtype=dtype)

    def push_to_hub(
        self,
        repository: str,
        to: str = "ldm",
        *,
        private: bool | None = None,
        message: str | None = None,
        dtype: str | None = None,
        licence: str | None = None,
    ) -> str:
        """Pushes the model to `OWNER/NAME` or `OWNER/NAME@BRANCH` on the Hugging Face Hub, in one commit.

        Returns the address with the commit, which `ldm.load` reads. If the repository doesn't exist it is created,
        `private` or by the account's default. `to` and `dtype` are those of `export`. A model card is written, with the
        `licence`, unless there is one; files of an earlier model are replaced.
        """
        from ldm.interop.hub.push import push_model

        options: dict[str, Any] = {"private": private, "message": message, "dtype": dtype, "licence": licence}
        return push_model(self, repository, to, **options)
