"""Captions through several frozen text encoders at once, their states side by side (Podell et al. 2023, SDXL)."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ldm.common.annotations import replace_surrogates
from ldm.common.devices import send
from ldm.common.errors import UserError
from ldm.common.registry import build, register
from ldm.conditioning.on_host import States, without
from ldm.conditioning.part import Part
from ldm.conditioning.text.frozen import FrozenText
from ldm.conditioning.text.known import Remember
from ldm.conditioning.text.truncation import Cut
from ldm.networks import Cond

NOTHING = "\0"  # stands for no caption, if that isn't the empty caption


@register
class JoinedText(Part):
    """Captions through several `encoders`, whose states are concatenated over channels, token by token.

    So none may be masked, and all have the same length. The pooled states of those that pool are concatenated in the
    vector. All encoders read the same caption, or each its own of a tuple of captions. With `zeros` the null condition
    has zeros for states and vector, as SDXL was trained, instead of the states of the empty caption, which is then a
    caption like any other.
    """

    column = "text"

    def __init__(self, encoders: Sequence[FrozenText], zeros: bool = False, drop_prob: float = 0.1):
        super().__init__(drop_prob)
        if len(encoders) < 2:
            raise UserError("conditioner: JoinedText needs two encoders or more; use FrozenText for one.")
        if any(part.masked for part in encoders) or len({part.length for part in encoders}) > 1:
            raise UserError(
                "conditioner: the tokens of JoinedText's encoders don't match: give all encoders "
                "masked=false and the same length."
            )
        self.encoders: Sequence[FrozenText] = nn.ModuleList(encoders)  # type: ignore[assignment]
        for i, part in enumerate(encoders[1:], 2):
            part.suffix = f"_{i}"
        self.nothing = NOTHING if zeros else ""
        self.token_dim = sum(part.token_dim or 0 for part in encoders)
        self.vector_dim = sum(part.vector_dim or 0 for part in encoders) or None
        self.register_buffer("_device_marker", torch.zeros(0, device="cpu"), persistent=False)

    @classmethod
    def derive(cls, table: Any, options: Mapping[str, Any]) -> dict[str, Any]:
        """The encoders, each with what is derived from its files."""
        specs = [{"class": "FrozenText", "masked": False, **spec} for spec in options.get("encoders") or []]
        where = "conditioner: an encoder of JoinedText"
        return {"encoders": [build(spec, where, **FrozenText.derive(table, spec)) for spec in specs]}

    def null_values(self, n: int) -> list[str]:
        """The null caption `n` times."""
        return [self.nothing] * n

    @property
    def prompts(self) -> int:  # type: ignore[override]
        """How many captions of one image it reads: one for each encoder."""
        return len(self.encoders)

    def parse(self, values: Any) -> list[Any]:
        """Captions, or tuples of one for each encoder, as text that can be written in UTF-8."""
        return [self._parsed(v) for v in values]

    def _parsed(self, value: Any) -> str | tuple[str, ...]:
        if not isinstance(value, tuple):
            return replace_surrogates(str(value))
        if len(value) != self.prompts:
            raise UserError(f"{len(value)} prompts for one image, but {self.prompts} text encoders: give one for each.")
        return tuple(replace_surrogates(str(v)) for v in value)

    def reader(self) -> Callable[[list[str]], Any] | None:
        """The function from captions to their known states, if all encoders know some."""
        known = [Remember(part.known) for part in self.encoders if part.known]
        return RememberJoined(known) if len(known) == len(self.encoders) else None

    def cut(self, captions: Iterable[str]) -> list[Cut]:
        """The captions that an encoder cuts. If several encoders cut a caption, the first of them counts."""
        captions = list(captions)
        found = {cut.caption: cut for part in reversed(self.encoders) for cut in part.cut(captions)}
        return list(found.values())

    def forward(self, values: list[str] | States, drop: Tensor | None = None) -> Cond:
        """Captions, or their states -> `tokens` (B, L, sum of widths), and `vector` (B, sum of pooled widths)."""
        if not isinstance(values, States):
            captions = without(values, drop, self.nothing)
            each = [_texts(captions, i) for i in range(len(self.encoders))]
            values = joined(self._states(each, training=drop is not None), captions)
        device: torch.device = self._device_marker.device
        return Cond(tokens=values.tokens, mask=values.mask, vector=values.vector).map(lambda t: send(t, device))

    def _states(self, each: Sequence[list[str]], training: bool) -> list[Cond]:
        """The states of the captions that `each` encoder reads, all with the same number of chunks."""
        found = [part.chunked(captions) for part, captions in zip(self.encoders, each, strict=True)]
        if training or not any(found):
            drop = torch.zeros(len(each[0]), dtype=torch.bool) if training else None
            return [part(captions, drop) for part, captions in zip(self.encoders, each, strict=True)]
        counts = [[own.get(caption, 1) for caption in captions] for own, captions in zip(found, each, strict=True)]
        least = [max(column) for column in zip(*counts, strict=True)]
        return [part.encode_prompts(captions, least) for part, captions in zip(self.encoders, each, strict=True)]

    def count_tokens(self, prompt: str) -> tuple[int, int]:
        """The tokens of a prompt and the limit, by the encoder that a prompt exceeds first."""
        return max((part.count_tokens(prompt) for part in self.encoders), key=lambda count: count[0] - count[1])

    def cut_prompts(self, prompts: Iterable[str]) -> list[Cut]:
        """The prompts that an encoder cuts: see `FrozenText.cut_prompts`."""
        prompts = list(prompts)
        found = {cut.caption: cut for part in reversed(self.encoders) for cut in part.cut_prompts(prompts)}
        return list(found.values())

    _device_marker: Tensor


class RememberJoined:
    """Replaces captions by their known, joined `States`; if one of them isn't known, all stay captions."""

    def __init__(self, known: Sequence[Remember]):
        self.known = known

    def __call__(self, captions: list[str]) -> States | list[str]:
        found = [remember(_texts(captions, i)) for i, remember in enumerate(self.known)]
        states = [one for one in found if isinstance(one, States)]
        return joined(states, captions) if len(states) == len(found) else captions


def _texts(captions: Sequence[str | tuple[str, ...]], i: int) -> list[str]:
    """The texts that encoder `i` reads: the empty one for NOTHING."""
    own = [caption[i] if isinstance(caption, tuple) else caption for caption in captions]
    return ["" if caption == NOTHING else caption for caption in own]


def joined(states: Sequence[States | Cond], captions: Sequence[str]) -> States:
    """The states of the same captions by several encoders, concatenated over channels; zeros for NOTHING."""
    tokens = torch.cat([s.tokens for s in states if s.tokens is not None], 2)  # (B, L, sum of D)
    vectors = [s.vector for s in states if s.vector is not None]
    absent = send(torch.tensor([caption == NOTHING for caption in captions], dtype=torch.bool), tokens.device)
    vector = torch.cat(vectors, 1).masked_fill(absent[:, None], 0) if vectors else None
    mask = next((s.mask for s in states if s.mask is not None), None)  # of prompts in different numbers of chunks
    return States(tokens.masked_fill(absent[:, None, None], 0), mask, vector)
