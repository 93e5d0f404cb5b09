"""The base of all conditions: from a column of the batch to a role in `Cond`, with a null value where it is absent."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ldm.conditioning.text.truncation import Cut

EncodeFn = Callable[[Tensor], Tensor]  # images (B, C, H, W) in [-1, 1] -> whitened latents (B, C', h, w)


class Part(nn.Module):
    """One condition of a `Conditioner`.

    `column` is the key of the batch that it reads. `token_dim`, `vector_dim` and `concat_channels` are the sizes of its
    output. `forward(values, drop)` encodes the column, with the null condition for the samples where `drop` (B,) is
    True; classifier-free guidance needs it (Ho and Salimans 2022).

    If the data don't have the column, `prepare` makes it from the keys in `sources`. `inputs` are the names under which
    a user passes values. If `follows_guidance` is False, a single guidance scale doesn't apply to the condition: the
    unconditional side has it too.
    """

    column: str
    token_dim: int | None = None
    vector_dim: int | None = None
    concat_channels: int = 0
    sources: tuple[str, ...] = ()
    follows_guidance: bool = True
    nothing: str = ""  # replaces a dropped caption
    prompts: int = 1  # that it reads of one image, each with a text encoder of its own

    def __init__(self, drop_prob: float):
        super().__init__()
        self.drop_prob = drop_prob

    @classmethod
    def derive(cls, table: Any, options: Mapping[str, Any]) -> dict[str, Any]:
        """Constructor arguments that depend on the training data; `options` are those that the user has set."""
        return {}

    @classmethod
    def derive_latent(cls, first_stage: Any, options: Mapping[str, Any]) -> dict[str, Any]:
        """Constructor arguments that depend on the first stage, such as its factor."""
        return {}

    @property
    def needs(self) -> tuple[str, ...]:
        """The keys that a batch of training data must have."""
        return self.sources or (self.column,)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names under which a user passes values."""
        return (self.column,)

    def prepare(self, batch: Mapping[str, Any], encode: EncodeFn, seed: int) -> Any:
        """The column, made from `sources` or from values of the user. `encode` maps images to whitened latents.

        Random numbers depend only on (seed, batch["position"]). In generation the position is the image's own seed.
        """
        raise NotImplementedError

    def example(self, batch: Mapping[str, Any], seed: int) -> dict[str, Any]:
        """The values that a user would pass to generate the samples of a batch of data."""
        return {key: batch[key] for key in self.inputs}

    def reader(self) -> Callable[[list[str]], Any] | None:
        """A function that turns captions into tensors on the host without weights; None for other columns."""
        return None

    def move_to(self, device: torch.device) -> None:
        """Moves what isn't part of the module's state, such as a frozen encoder, to `device` before the first step."""

    def cut(self, captions: Iterable[str]) -> list[Cut]:
        """The captions that are cut because they have more tokens than the encoder reads."""
        return []

    def cut_prompts(self, prompts: Iterable[str]) -> list[Cut]:
        """The same for prompts, which some encoders read in chunks."""
        return self.cut(prompts)

    def count_tokens(self, prompt: str) -> tuple[int, int] | None:
        """The tokens of a prompt, special ones included, and how many the encoder reads; None without an encoder."""
        return None

    def null_values(self, n: int) -> Any:
        """`n` null values of the column."""
        raise NotImplementedError

    def null_sized(self, n: int, size: tuple[int, int] | None) -> Any:
        """Null values for images of `size` (height, width) in pixels, by default the size of the training data."""
        return self.null_values(n)

    def null_inputs(self, n: int, size: tuple[int, int] | None) -> dict[str, Any]:
        """Null values as they go into a batch that `Conditioner.prepare` takes: the column, or what it is made of."""
        return {self.column: self.null_sized(n, size)}

    def parse(self, values: Any) -> Any:
        """The column for the values that a user passes. Raises UserError, with the possible values, for others."""
        return values
