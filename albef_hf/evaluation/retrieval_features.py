"""The two sides of a retrieval evaluation: every image and every text encoded once, shared between ranks.

Token states, which re-ranking needs again, are kept in memory where they fit, else in a file, else encoded again.
"""

import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ..data.images import decode_image
from ..gathering import gather_rows, rank, world_size
from ..processing_albef import AlbefProcessor

ROWS_GATHERED_AT_ONCE = 256


def full_precision(vectors: torch.Tensor) -> torch.Tensor:
    return vectors.to(torch.promote_types(vectors.dtype, torch.float32))


def progress_bar(total: int, description: str) -> tqdm:
    """A bar on the first rank's terminal; nothing where there is no terminal."""
    return tqdm(total=total, desc=description, disable=None if rank() == 0 else True, leave=False)


# ---------------------------------------------------------------------------------------------------------------------
# Rows of a table over ranks
# ---------------------------------------------------------------------------------------------------------------------


def share(count: int, of_rank: int) -> range:
    """The rows of a table of `count` that a rank works on; shares differ by one row at most."""
    return range(of_rank * count // world_size(), (of_rank + 1) * count // world_size())


def gather_shares(rows: torch.Tensor, count: int) -> torch.Tensor:
    """The rows of all ranks' shares, in order: (own share, ...) -> (count, ...) on every rank."""
    if world_size() == 1:
        return rows
    sizes = [len(share(count, each)) for each in range(world_size())]
    padded = rows.new_zeros((max(sizes), *rows.shape[1:]))
    padded[: len(rows)] = rows
    gathered = gather_rows(padded).unflatten(0, (world_size(), max(sizes)))
    return torch.cat([part[:size] for part, size in zip(gathered, sizes, strict=True)])


# ---------------------------------------------------------------------------------------------------------------------
# Token states
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TokenStorage:
    """Where the token states of one side may be kept.

    Args:
        memory: bytes they may take in memory, on the model's device.
        dtype: what they are kept in; that of the model where left out. 16 bits halve their size and round them.
        folder: where a file may hold what does not fit into memory; without one it is encoded again when needed.
    """

    memory: int
    dtype: torch.dtype | None = None
    folder: Path | None = None

    def table(self, shape: tuple[int, int, int], like: torch.Tensor) -> torch.Tensor | None:
        """An empty table (rows, tokens, width), of which a file on this machine may be the memory; None: encode again.

        Raises:
            ValueError: the folder has no room.
        """
        dtype = self.dtype or like.dtype
        size = shape[0] * shape[1] * shape[2] * dtype.itemsize
        if size <= self.memory:
            return torch.zeros(shape, dtype=dtype, device=like.device)
        if self.folder is None:
            return None
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=self.folder, prefix="token-states-") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, size)  # now, since a mapped file without room would crash later
            except OSError as error:
                raise ValueError(f"token_folder {self.folder} has no room for {size:,} bytes: {error}") from error
            # The name goes at the end of this block; the mapping keeps the contents for as long as the tensor lives.
            return torch.from_file(file.name, shared=True, size=size // dtype.itemsize, dtype=dtype).view(shape)


class PixelRows(Dataset):
    """Images as the model takes them, by position in a list of rows."""

    def __init__(self, images: datasets.Dataset, processor: AlbefProcessor, rows: Sequence[int]) -> None:
        self.images, self.processor, self.rows = images, processor, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> torch.Tensor:
        image = decode_image(self.images[self.rows[position]]["image"])
        return self.processor(images=[image], return_tensors="pt")["pixel_values"][0]


def encode_pixels(model: Any, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels (batch, channels, h, w) -> tokens (batch, tokens, width) and unit vectors (batch, projection_dim)."""
    weight = next(model.parameters())
    output = model.get_image_features(pixel_values.to(weight.device, weight.dtype))
    return output.last_hidden_state, full_precision(output.pooler_output)


class ImageSide:
    """features (images, projection_dim) of all images, on every rank; token states of this rank's share.

    Without `storage` no token states are kept: there will be no re-ranking.
    """

    def __init__(
        self,
        model: nn.Module,
        processor: AlbefProcessor,
        images: datasets.Dataset,
        batch_size: int,
        workers: int,
        storage: TokenStorage | None,
    ) -> None:
        self.model: Any = model
        self.processor, self.images, self.batch_size, self.workers = processor, images, batch_size, workers
        self.own = share(len(images), rank())
        self.kept: torch.Tensor | None = None
        features: list[torch.Tensor] = []
        done = 0
        with progress_bar(len(self.own), "images") as bar:
            for tokens, pooled in self._encode():
                if storage is not None and not features:
                    self.kept = storage.table((max(len(self.own), 1), *tokens.shape[1:]), tokens)
                if self.kept is not None:
                    self.kept[done : done + len(tokens)] = tokens.to(self.kept.device)
                features.append(pooled)
                done += len(tokens)
                bar.update(len(tokens))
        self.features = gather_shares(torch.cat(features)[: len(self.own)], len(images))

    def _encode(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """(tokens (batch, tokens, width), unit vectors (batch, projection_dim)) of this rank's share, in order."""
        # A rank without an image encodes one all the same, to know the width of what it gathers.
        rows = PixelRows(self.images, self.processor, self.own or range(1))
        # With a generator of its own the loader leaves torch's alone.
        loader = DataLoader(rows, self.batch_size, num_workers=self.workers, generator=torch.Generator())
        for pixel_values in loader:
            yield encode_pixels(self.model, pixel_values)

    def tokens(self) -> Iterator[tuple[int, torch.Tensor]]:
        """(row, token states (1, tokens, width)) of each image of this rank's share."""
        weight = next(self.model.parameters())
        batches = [self.kept] if self.kept is not None else (tokens for tokens, _ in self._encode())
        states = (tokens.to(weight.device, weight.dtype) for batch in batches for tokens in batch.split(1))
        yield from zip(self.own, states, strict=False)  # one more than the share where that is empty: see `_encode`


class TextSide:
    """features (texts, projection_dim) of all texts, and their token states, on every rank."""

    def __init__(
        self,
        model: nn.Module,
        processor: AlbefProcessor,
        texts: list[str],
        batch_size: int,
        max_length: int,
        storage: TokenStorage | None,
    ) -> None:
        self.model: Any = model
        weight = next(model.parameters())
        self.device, self.dtype = weight.device, weight.dtype
        encoding = processor.tokenize_captions(texts, max_length=max_length, padding="longest")
        self.input_ids, self.attention_mask = encoding["input_ids"], encoding["attention_mask"]
        self.lengths = self.attention_mask.sum(dim=1)
        own = torch.tensor(share(len(texts), rank()) or range(1))
        own = own[self.lengths[own].argsort(stable=True)]  # texts of one length together: less padding

        kept: torch.Tensor | None = None
        with progress_bar(len(own), "texts") as bar:
            for number, rows in enumerate(own.split(batch_size)):
                output = self._encode(rows)
                states, pooled = output.last_hidden_state, full_precision(output.pooler_output)
                if number == 0:
                    features = pooled.new_empty((len(own), pooled.shape[1]))
                    self.kept = None
                    if storage is not None:  # room for all texts, before anything is kept for nothing
                        shape = (self.input_ids.shape[1], states.shape[2])
                        self.kept = storage.table((len(texts), *shape), states)
                        alone = world_size() == 1 or self.kept is None
                        kept = self.kept if alone else storage.table((len(own), *shape), states)
                places = (rows - own.min()).to(self.device)
                features[places] = pooled
                if kept is not None:
                    kept[places.to(kept.device), : states.shape[1]] = states.to(kept.device, kept.dtype)
                bar.update(len(rows))
        self.features = gather_shares(features[: len(share(len(texts), rank()))], len(texts))
        if self.kept is not None and kept is not self.kept:
            assert kept is not None
            self._gather_states(kept)

    def _gather_states(self, own: torch.Tensor) -> None:
        """Fill `kept` from the shares of all ranks, some rows at a time."""
        assert self.kept is not None
        count = len(self.kept)
        shares = [share(count, each) for each in range(world_size())]
        for start in range(0, max(len(rows) for rows in shares), ROWS_GATHERED_AT_ONCE):
            block = own[start : start + ROWS_GATHERED_AT_ONCE]
            padded = torch.zeros((ROWS_GATHERED_AT_ONCE, *own.shape[1:]), dtype=own.dtype, device=self.device)
            padded[: len(block)] = block.to(self.device)
            for rows, part in zip(shares, gather_rows(padded).chunk(world_size()), strict=True):
                places = rows[start : start + ROWS_GATHERED_AT_ONCE]
                self.kept[places.start : places.stop] = part[: len(places)].to(self.kept.device)

    def _trimmed(self, rows: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        """Rows of a (texts, tokens) table as far as the longest of these texts, on the device."""
        return table[rows, : int(self.lengths[rows].max())].to(self.device)

    def _encode(self, rows: torch.Tensor) -> Any:
        return self.model.get_text_features(
            self._trimmed(rows, self.input_ids), self._trimmed(rows, self.attention_mask)
        )

    def states(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Token states (rows, tokens, width) and attention mask (rows, tokens) of these texts."""
        attention_mask = self._trimmed(rows, self.attention_mask)
        if self.kept is None:
            return self._encode(rows).last_hidden_state, attention_mask
        states = self.kept[rows.to(self.kept.device), : attention_mask.shape[1]]
        return states.to(self.device, self.dtype), attention_mask
