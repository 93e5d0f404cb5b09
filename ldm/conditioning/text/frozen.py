"""A frozen text encoder of Hugging Face's transformers, such as CLIP, T5 and BERT, with one state for each token.

It isn't part of the model: a model folder records its path or name and its hash, or with `bundle` holds a copy.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ldm.common.annotations import replace_surrogates
from ldm.common.devices import send
from ldm.common.errors import UserError
from ldm.common.registry import register
from ldm.conditioning.on_host import States, without
from ldm.conditioning.part import Part
from ldm.conditioning.text import prompts as syntax
from ldm.conditioning.text.encoders import (
    CLIP_KINDS,
    check_tokens,
    fingerprint,
    folder_of,
    kind_of,
    load_encoder,
    load_tokenizer,
    width_of,
)
from ldm.conditioning.text.frozen_files import FrozenFiles
from ldm.conditioning.text.known import Known, Remember
from ldm.conditioning.text.truncation import Cut, CutClip, cuts
from ldm.conditioning.text.words import WithWords, expanded
from ldm.networks import Cond


@register
class FrozenText(FrozenFiles, WithWords, Part):
    """Captions through a frozen encoder at `path`: a local folder, or a name that transformers knows.

    `tokenizer` is the folder of its tokenizer, if that isn't `path` or `tokenizer` beside it; "byt5" is ByT5's, which
    has no files. With `masked`, padding is never attended to, and batches are as long as their longest caption; without
    it, captions are padded to `length` tokens and nothing is masked, as in Stable Diffusion. `pooled` adds the
    encoder's pooled state to the time embedding, and `projected` takes it through CLIP's projection, to `pooled_dim`
    numbers. States are those of the last layer; `clip_skip=2` takes those of the last but one, and so on, after the
    encoder's final norm unless `final_norm` is false.

    `dim`, `pooled_dim` and `sha256` are derived from the encoder unless given; an encoder with another hash is refused.
    `words` are new words of a CLIP encoder with the number of vectors of each (`ldm.adapters.textual_inversion`); their
    embeddings are weights of the model. `bundle` copies encoder and tokenizer into every model folder that is saved.
    The encoder is read when it is first used. Stage two computes the states of its captions beforehand (`known`), and
    then doesn't hold the encoder.
    """

    column = "text"

    def __init__(
        self,
        path: str,
        tokenizer: str | None = None,
        length: int | None = None,
        masked: bool = True,
        pooled: bool = False,
        dim: int | None = None,
        sha256: str | None = None,
        drop_prob: float = 0.1,
        bundle: bool = False,
        clip_skip: int = 1,
        final_norm: bool = True,
        projected: bool = False,
        pooled_dim: int | None = None,
        words: Mapping[str, int] | None = None,
    ):
        super().__init__(drop_prob)
        if clip_skip < 1 or (clip_skip == 1 and not final_norm):
            raise UserError(
                f"clip_skip={clip_skip}, final_norm={final_norm}: 1 is the last layer, which always keeps its "
                "norm; give 2 or more to leave the norm out."
            )
        if projected and not pooled:
            raise UserError("projected=True concerns the pooled state: give pooled=True too.")
        self.clip_skip, self.final_norm, self.projected = clip_skip, final_norm, projected
        self.path, self.tokenizer_path, self.length = path, tokenizer, length
        self.masked, self.pooled, self.sha256, self.bundled = masked, pooled, sha256, bundle
        self.token_dim = dim or width_of(path)
        if pooled:
            self.vector_dim = (pooled_dim or width_of(path, "projection_dim")) if projected else self.token_dim
        self.suffix = ""  # of the folders' names if there are several encoders
        self.known: Known | None = None
        # (tokenizer, encoder); in a list, since a frozen encoder isn't part of the model
        self._held: list[Any] = []
        self._tokenizer_only: list[Any] = []
        self.start_words(words or {})
        # Shows the device. It is created on the CPU, so that a model built on the device "meta" has a real one too.
        self.register_buffer("_device_marker", torch.zeros(0, device="cpu"), persistent=False)

    @classmethod
    def derive(cls, table: Any, options: Mapping[str, Any]) -> dict[str, Any]:
        """Path, widths and hash of the encoder, which is downloaded if `path` is a name."""
        path = str(options.get("path", ""))
        if not path:
            raise UserError("conditioner: FrozenText needs path=, the folder of a text encoder of transformers.")
        derived: dict[str, Any] = {"path": path, "dim": width_of(path)}
        if options.get("projected"):
            derived["pooled_dim"] = width_of(path, "projection_dim")
        if folder_of(path) is None:
            load_encoder(path)  # downloads it
        folder = folder_of(path)
        return derived | ({"sha256": fingerprint(folder)} if folder else {})

    def null_values(self, n: int) -> list[str]:
        """The empty caption `n` times."""
        return [""] * n

    def parse(self, values: Any) -> list[str]:
        """Captions as text that can be written in UTF-8."""
        return [replace_surrogates(str(v)) for v in values]

    def hold(self, tokenizer: Any, encoder: Any) -> None:
        """Uses a tokenizer and an encoder that are in memory already instead of reading those at `path`."""
        self._held = [tokenizer, encoder.eval().requires_grad_(False)]

    def release(self) -> None:
        """Frees the memory of the encoder; it is read again if it is used again."""
        self._held = []

    @property
    def is_held(self) -> bool:
        """Whether the encoder is in memory."""
        return bool(self._held)

    @property
    def encoder(self) -> Any:
        """The encoder of transformers, read when it is first used."""
        self._load()
        return self._held[1]

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of transformers, read together with the encoder, without the new words."""
        self._load()
        return self._held[0]

    def reader(self) -> Callable[[list[str]], States | list[str]] | None:
        """A function that replaces captions by their states in `known`; None if none are known."""
        return Remember(self.known) if self.known else None

    def forward(self, values: list[str] | States, drop: Tensor | None = None) -> Cond:
        """Captions, or their states -> `tokens` (B, L, D), with `mask` and `vector` as in `encode`."""
        if not isinstance(values, States):
            values = without(values, drop)
            values = Remember(self.known)(values) if self.known else values
        if not isinstance(values, States):
            return self.encode_prompts(values) if drop is None else self.encode(values)
        device: torch.device = self._device_marker.device
        return Cond(tokens=values.tokens, mask=values.mask, vector=values.vector).map(lambda t: send(t, device))

    def encode(self, values: list[str]) -> Cond:
        """Captions through the encoder: `tokens` (B, L, D), `mask` (B, L) if masked, `vector` (B, D) if pooled."""
        batch = self._tokens(values)
        return self._run(batch["input_ids"], batch["attention_mask"])

    def encode_prompts(self, prompts: list[str], least: Sequence[int] | None = None) -> Cond:
        """The same for what isn't a caption in training: see `ldm.conditioning.text.prompts`, for CLIP's encoders.

        Prompts without the syntax have the states of `encode`. `least` has the minimum number of chunks for each
        prompt.
        """
        least = least or [1] * len(prompts)
        if not self.chunked(prompts) and max(least, default=1) == 1:
            return self.encode(prompts)
        tokenizer, texts = self.with_words(self.tokenizer), expanded(prompts, self.words)
        return syntax.encode(texts, least, tokenizer, limit=self.limit(tokenizer), masked=self.masked, run=self._run)

    def chunked(self, prompts: Iterable[str]) -> dict[str, int]:
        """The prompts that use the syntax of CLIP's encoders, with the number of their chunks; none for other
        encoders.
        """
        tokenizer = self.clip_tokenizer()
        if tokenizer is None:
            return {}
        tokenizer, prompts = self.with_words(tokenizer), list(prompts)
        counts = syntax.counts(texts := expanded(prompts, self.words), tokenizer, self.limit(tokenizer))
        return {prompt: counts[text] for prompt, text in zip(prompts, texts, strict=True) if text in counts}

    def _run(self, ids: Tensor, mask: Tensor) -> Cond:
        """Token `ids` (B, L) through the encoder, with `mask` (B, L) 1 on tokens and 0 on padding: see `encode`."""
        device: torch.device = self._device_marker.device
        encoder, first = self.encoder.to(device), len(self.tokenizer)
        check_tokens(ids.masked_fill(ids >= first, 0) if self.words else ids, encoder, self.tokenizer, self.path)
        # Some tokenizers give "" no token at all, and attention to nothing is NaN.
        mask[mask.sum(1) == 0, 0] = 1
        ids, mask = send(ids, device), send(mask, device)
        skips = {"output_hidden_states": True} if self.clip_skip > 1 else {}
        with self.embedding_words(encoder, first):
            output = encoder(input_ids=ids, attention_mask=mask if self.masked else None, **skips)
            return self._read(output, mask, encoder)

    def _read(self, output: Any, mask: Tensor, encoder: Any) -> Cond:
        """The `Cond` for an encoder's output, with `mask` (B, L) 1 on tokens."""
        keep = mask.bool() if self.masked else None
        return Cond(vector=self._pool(output, mask), tokens=self._states(encoder, output).float(), mask=keep)

    def _states(self, encoder: Any, output: Any) -> Tensor:
        """The states (B, L, D) of the layer that `clip_skip` stands for."""
        if self.clip_skip == 1:
            return output.last_hidden_state
        layers = len(output.hidden_states) - 1
        norms = [module for name, module in encoder.named_modules() if name.endswith("final_layer_norm")]
        if self.clip_skip > layers or (self.final_norm and len(norms) != 1):
            why = f"has {layers} layers" if norms else "has no final_layer_norm, as CLIP's has"
            raise UserError(
                f"clip_skip={self.clip_skip}: the text encoder at '{self.path}' {why}; give a lower one, such as 1."
            )
        states = output.hidden_states[-self.clip_skip]
        return norms[0](states) if self.final_norm else states

    def _tokens(self, values: list[str]) -> Mapping[str, Tensor]:
        tokenizer, padding = self.with_words(self.tokenizer), "longest" if self.masked else "max_length"
        limit, texts = self.limit(tokenizer), expanded(values, self.words)
        return tokenizer(texts, padding=padding, max_length=limit, truncation=True, return_tensors="pt")

    def limit(self, tokenizer: Any) -> int:
        """The number of tokens to which captions are padded and cut."""
        return self.length or min(tokenizer.model_max_length, 512)

    def cut(self, captions: Iterable[str]) -> list[Cut]:
        """The captions that are cut, found by the tokenizer alone, without reading the encoder."""
        tokenizer, captions = self.with_words(self._tokenizer_alone()), list(captions)
        given = dict(zip(expanded(captions, self.words), captions, strict=True))
        return [cut._replace(caption=given[cut.caption]) for cut in cuts(tokenizer, given, self.limit(tokenizer))]

    def count_tokens(self, prompt: str) -> tuple[int, int]:
        """The tokens of a prompt, and how many the encoder reads at once."""
        tokenizer = self._tokenizer_alone()
        return len(tokenizer(prompt, verbose=False)["input_ids"]), self.limit(tokenizer)

    def cut_prompts(self, prompts: Iterable[str]) -> list[Cut]:
        """The prompts that are cut.

        With CLIP these are only prompts without the syntax, since others are read in chunks.
        """
        if self.clip_tokenizer() is None:
            return self.cut(prompts)
        return [CutClip(*cut) for cut in self.cut(p for p in prompts if syntax.parse(p) is None)]

    def _tokenizer_alone(self) -> Any:
        if not self._held and not self._tokenizer_only:
            self._tokenizer_only.append(load_tokenizer(self._tokenizer_folder()))
        return (self._held or self._tokenizer_only)[0]

    def clip_tokenizer(self) -> Any:
        """The tokenizer, if the encoder is CLIP's and the tokenizer marks begin and end; else None."""
        if self._held:
            is_clip = type(self._held[1]).__name__.startswith("CLIPText")
        else:
            is_clip = kind_of(self.path) in CLIP_KINDS
        if not is_clip:
            return None
        tokenizer = self._tokenizer_alone()
        marks = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
        return None if None in marks else tokenizer

    def _pool(self, output: Any, mask: Tensor) -> Tensor | None:
        """The pooled states (B, D): the encoder's own, or the mean of its states (B, L, D) where `mask` (B, L) is 1."""
        if not self.pooled:
            return None
        if self.projected:
            return output.text_embeds.float()
        if getattr(output, "pooler_output", None) is not None:
            return output.pooler_output.float()
        states = output.last_hidden_state * mask[..., None]
        return (states.sum(1) / mask.sum(1, keepdim=True)).float()  # (B, D)

    def _load(self) -> None:
        if self._held:
            return
        checked = self._check_hash()
        encoder = load_encoder(self.path, self.projected)
        if not checked:  # a name whose files have been downloaded only now
            self._check_hash()
        self.hold(load_tokenizer(self._tokenizer_folder()), encoder)

    _spec: dict[str, Any]
    _device_marker: Tensor
