"""The caption cache: a frozen text encoder encodes every caption once, and stage two trains without the encoder."""

import contextlib
import json
import logging
import shutil
from collections.abc import Iterable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm.artifact import to_json
from ldm.common.devices import temporarily_on, to_host
from ldm.common.files import atomic_write, one_at_a_time
from ldm.common.ranks import rank
from ldm.common.tensors import bytes_of
from ldm.conditioning import Conditioner, FrozenText
from ldm.conditioning.text.encoders import TOKENIZER, fingerprint, folder_of, tokenizer_of
from ldm.conditioning.text.tokenizer import flatten
from ldm.conditioning.text.truncation import report
from ldm.data.storage.table import hash_of
from ldm.networks import Cond

log = logging.getLogger("ldm")
MANIFEST = "captions.json"
PIECE = 8192  # captions that are encoded as one piece: at most so many are encoded again after an interruption


class States:
    """The encoder's states of captions, memory-mapped and found by a caption's hash.

    `folder` holds them in pieces, each with `states.raw` (T, D) float32, the states of all captions' tokens one after
    the other, `ends.npy` (N,), the row at which each caption ends, `hashes.npy` (N,), and `pooled.npy` (N, D) if the
    encoder pools.
    """

    def __init__(self, folder: Path, masked: bool):
        self.folder, self.masked = folder.absolute(), masked
        self.pieces = [_read(piece) for piece in _pieces(folder)]
        hashes = [piece["hashes"] for piece in self.pieces] or [np.empty(0, np.uint64)]
        where = np.concatenate([_pairs(i, len(h)) for i, h in enumerate(hashes)])  # (N, 2): piece and row
        order = np.argsort(joined := np.concatenate(hashes), kind="stable")
        self.hashes, self.where = joined[order], where[order]

    def __deepcopy__(self, memo: dict[int, Any]) -> "States":
        return self  # the files never change: the average of the network reads the same

    def __reduce__(self) -> tuple[Any, ...]:
        return States, (self.folder, self.masked)  # another process reads the files again, with those written since

    def __len__(self) -> int:
        return len(self.hashes)

    def missing(self, captions: Iterable[str]) -> list[str]:
        """The distinct captions that aren't in the cache, the shortest first."""
        distinct = sorted(set(captions), key=lambda caption: (len(caption), caption))
        found = self._find(distinct) >= 0
        return [caption for caption, here in zip(distinct, found, strict=True) if not here]

    def get(self, captions: list[str]) -> Cond | None:
        """`tokens` (B, L, D), padded with zeros to the longest caption, with `mask` and `vector` if the encoder has
        them; None if a caption is missing."""
        at = self._find(captions)
        if (at < 0).any():
            return None
        of_piece, row = self.where[at].T  # (B,), (B,)
        ends = [piece["ends"] for piece in self.pieces]
        first, length = np.zeros_like(row), np.zeros_like(row)
        for i in np.unique(of_piece).tolist():
            here = of_piece == i
            first[here] = np.where(row[here] > 0, ends[i][row[here] - 1], 0)
            length[here] = ends[i][row[here]] - first[here]
        tokens = np.zeros((len(at), length.max(), self.pieces[0]["states"].shape[1]), np.float32)  # (B, L, D)
        pooled = np.zeros((len(at), self.pieces[0]["pooled"].shape[1]), np.float32) if self._pools else None
        for i in np.unique(of_piece).tolist():
            here = np.flatnonzero(of_piece == i)
            n = length[here]
            place = np.arange(n.sum()) - np.repeat(n.cumsum() - n, n)  # 0, 1, ... in each caption
            tokens[np.repeat(here, n), place] = self.pieces[i]["states"][np.repeat(first[here], n) + place]
            if pooled is not None:
                pooled[here] = self.pieces[i]["pooled"][row[here]]
        mask = torch.from_numpy(np.arange(length.max()) < length[:, None]) if self.masked else None  # (B, L)
        vector = None if pooled is None else torch.from_numpy(pooled)
        return Cond(vector=vector, tokens=torch.from_numpy(tokens), mask=mask)

    @property
    def _pools(self) -> bool:
        return "pooled" in self.pieces[0]

    def _find(self, captions: list[str]) -> np.ndarray:
        """The index of each caption among the hashes, (B,), or -1."""
        wanted = _hashes(captions)
        at = np.searchsorted(self.hashes, wanted).clip(max=max(0, len(self.hashes) - 1))
        return np.where(self.hashes[at] == wanted, at, -1) if len(self.hashes) else np.full(len(wanted), -1)


def remember_captions(
    conditioner: Conditioner, tables: Iterable[Any], root: Path, device: torch.device | str | None = None
) -> None:
    """Gives every frozen text encoder of `conditioner` the states of all captions of `tables`, and frees its weights.

    Before, it reports how many captions are longer than the encoders, frozen or not, can read. `device` is where the
    states are computed, by default where the conditioner is.
    """
    report_cut(conditioner, tables)
    frozen = [part for part in conditioner.modules() if isinstance(part, FrozenText)]
    if not frozen:
        return
    captions = {"", *(text for table in tables for text in captions_of(table))}
    for part in frozen:
        part.known = cached_states(part, captions, root, device=device)
        part.release()


def report_cut(conditioner: Conditioner, tables: Iterable[Any]) -> None:
    """Reports, in the first process, how many captions of `tables` are longer than the encoders can read."""
    if rank() == 0:
        report(conditioner, list(dict.fromkeys(text for table in tables for text in captions_of(table))))


def captions_of(table: Any) -> list[str]:
    """All captions of a table, alternatives included."""
    return flatten(table.columns.get("text", ()))


def cached_states(
    part: FrozenText,
    captions: Iterable[str],
    root: Path,
    batch_size: int = 64,
    device: torch.device | str | None = None,
) -> States:
    """The states of `captions`. Those that aren't in the cache under `root` are computed now.

    Each encoder has one cache, which grows: captions of earlier runs aren't computed again. If several processes start
    together, one computes and the others wait.
    """
    folder = root / "captions" / _key(part)
    folder.mkdir(parents=True, exist_ok=True)
    captions = set(captions)
    states = States(folder, part.masked)
    if states.missing(captions):
        with one_at_a_time(folder):
            missing = States(folder, part.masked).missing(captions)
            if missing:
                log.info("encoding %d captions with the text encoder at %s", len(missing), part.path)
            with temporarily_on(part, device):
                for start in range(0, len(missing), PIECE):
                    _encode(part, missing[start : start + PIECE], folder, batch_size)
        states = States(folder, part.masked)
    return states


def _encode(part: FrozenText, captions: list[str], folder: Path, batch_size: int) -> None:
    """Writes the states of `captions` as a new piece, which gets its name when it is complete."""
    work = folder / ".partial"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    lengths: list[int] = []
    pooled: list[Tensor] = []
    with (work / "states.raw").open("wb") as file:
        for start in range(0, len(captions), batch_size):
            tokens, keep, vectors = _on_host(part.encode(captions[start : start + batch_size]))
            file.write(tokens[keep].numpy().tobytes())
            lengths += keep.sum(1).tolist()
            pooled += vectors
    np.save(work / "ends.npy", np.cumsum(lengths))
    np.save(work / "hashes.npy", _hashes(captions))
    if pooled:
        np.save(work / "pooled.npy", torch.cat(pooled).numpy())
    about = {"encoder": part.path, "captions": len(captions), "tokens": sum(lengths), "dim": part.token_dim}
    atomic_write(work / MANIFEST, to_json(about))
    piece = folder / hash_of(captions)
    shutil.rmtree(piece, ignore_errors=True)  # a damaged one
    work.rename(piece)


def _on_host(cond: Cond) -> tuple[Tensor, Tensor, list[Tensor]]:
    """On the CPU: the states (B, L, D), their mask (B, L), and a list with the pooled states (B, D), empty if there are
    none."""
    assert cond.tokens is not None
    tokens, *others = to_host(*(t for t in (cond.tokens, cond.mask, cond.vector) if t is not None))
    keep = torch.ones(tokens.shape[:2], dtype=torch.bool) if cond.mask is None else others.pop(0)
    return tokens, keep, others


def _pieces(folder: Path) -> Iterator[Path]:
    """The complete pieces."""
    for manifest in sorted(folder.glob(f"[!.]*/{MANIFEST}")):
        with contextlib.suppress(OSError, ValueError, KeyError):
            about = json.loads(manifest.read_text())
            if (manifest.parent / "states.raw").stat().st_size == 4 * about["tokens"] * about["dim"]:
                yield manifest.parent


def _read(folder: Path) -> dict[str, np.ndarray]:
    about = json.loads((folder / MANIFEST).read_text())
    shape = (about["tokens"], about["dim"])
    names = ("ends", "hashes", *(("pooled",) if (folder / "pooled.npy").is_file() else ()))
    piece = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in names}
    return piece | {"states": np.memmap(folder / "states.raw", np.float32, "r", shape=shape)}


def _key(part: FrozenText) -> str:
    """A name for the encoder, its tokenizer, and how their states are used."""
    encoder = folder_of(part.path)
    words = part.tokenizer_path or tokenizer_of(part.path)
    named = part.sha256 or (fingerprint(encoder) if encoder else part.path)
    folder = folder_of(words)
    tokenizer = fingerprint(folder, TOKENIZER) if folder else words
    skipped: list[Any] = [] if part.clip_skip == 1 else [part.clip_skip, part.final_norm]
    skipped += ["projected"] if part.projected else []
    if part.words:  # their embeddings are weights of the model
        skipped += [dict(part.words), *(sha256(bytes_of(rows)).hexdigest() for rows in part.word_rows)]
    return hash_of(named, tokenizer, part.length, part.masked, part.pooled, *skipped)


def _hashes(captions: Iterable[str]) -> np.ndarray:
    """The first 64 bits of each caption's SHA-256, (N,). Among a million captions, the chance that any two collide is
    one in 40 million."""
    return np.array(
        [int.from_bytes(sha256(c.encode("utf-8", "surrogatepass")).digest()[:8]) for c in captions], np.uint64
    )


def _pairs(piece: int, n: int) -> np.ndarray:
    return np.stack([np.full(n, piece), np.arange(n)], 1)  # (N, 2)
