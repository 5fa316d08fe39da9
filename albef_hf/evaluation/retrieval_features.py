"""Features for retrieval: every image and every text is encoded once, and ranks share the work.

Re-ranking needs the token states a second time. They are kept in memory where they fit, else in a file, else the
images and texts are encoded again.
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

from ..data.batches import started
from ..data.images import decode_image
from ..gathering import gather_rows, rank, world_size
from ..losses import full_precision
from ..processing_albef import AlbefProcessor
from .mode import failing_together

ROWS_GATHERED_AT_ONCE = 256


def progress_bar(total: int, description: str) -> tqdm:
    """A progress bar on the first rank's terminal; nothing where there is no terminal."""
    return tqdm(total=total, desc=description, disable=None if rank() == 0 else True, leave=False)


# ---------------------------------------------------------------------------------------------------------------------
# Shards of a table
# ---------------------------------------------------------------------------------------------------------------------


def shard(count: int, of_rank: int) -> range:
    """The rows, of a table with `count` rows, that a rank works on. Sizes of shards differ by one row at most."""
    return range(of_rank * count // world_size(), (of_rank + 1) * count // world_size())


def gather_shards(rows: torch.Tensor, count: int) -> torch.Tensor:
    """The shards of all ranks in order: this rank's shard (rows, ...) -> (count, ...) on every rank."""
    if world_size() == 1:
        return rows
    sizes = [len(shard(count, each)) for each in range(world_size())]
    padded = rows.new_zeros((max(sizes), *rows.shape[1:]))
    padded[: len(rows)] = rows
    gathered = gather_rows(padded).unflatten(0, (world_size(), max(sizes)))
    return torch.cat([part[:size] for part, size in zip(gathered, sizes, strict=True)])


# ---------------------------------------------------------------------------------------------------------------------
# Token states
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TokenStorage:
    """Where the token states of the images, or of the texts, may be kept.

    Args:
        memory: bytes that they may take on the model's device.
        dtype: what they are kept in; the model's dtype where left out. 16 bits halve their size and round them.
        folder: where a file may hold states that do not fit into memory; without a folder they are computed again.
    """

    memory: int
    dtype: torch.dtype | None = None
    folder: Path | None = None

    def allocate(self, shape: tuple[int, int, int], like: torch.Tensor) -> torch.Tensor | None:
        """An empty table (rows, tokens, width) in memory or in a file of this machine; None: compute states again.

        Raises:
            ValueError: the folder has no room for the file.
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
                os.posix_fallocate(file.fileno(), 0, size)  # without room, a mapped file would crash later
            except OSError as error:
                raise ValueError(f"token_folder {self.folder} has no room for {size:,} bytes: {error}") from error
            # The file loses its name at the end of this block and keeps its content as long as the tensor lives.
            return torch.from_file(file.name, shared=True, size=size // dtype.itemsize, dtype=dtype).view(shape)


class PixelDataset(Dataset):
    """Pixels of the images in some rows of a data set, as the model takes them."""

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


class ImageFeatures:
    """Unit vectors of all images, and token states of this rank's images.

    Args:
        storage: where token states are kept; None where there will be no re-ranking.

    Attributes:
        rows: the images of this rank.
        features: (images, projection_dim), on every rank.
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
        self.rows = shard(len(images), rank())
        self.stored: torch.Tensor | None = None
        features: list[torch.Tensor] = []
        done = 0
        with failing_together(), progress_bar(len(self.rows), "images") as bar:
            for tokens, pooled in self._encode():
                if storage is not None and not features:
                    self.stored = storage.allocate((max(len(self.rows), 1), *tokens.shape[1:]), tokens)
                if self.stored is not None:
                    self.stored[done : done + len(tokens)] = tokens.to(self.stored.device)
                features.append(pooled)
                done += len(tokens)
                bar.update(len(tokens))
        self.features = gather_shards(torch.cat(features)[: len(self.rows)], len(images))

    def _encode(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Tokens (batch, tokens, width) and unit vectors (batch, projection_dim) of this rank's images, in order."""
        # A rank without an image encodes the first one, to know the width of what it gathers.
        pixels = PixelDataset(self.images, self.processor, self.rows or range(1))
        # With its own generator the loader leaves torch's generator alone.
        loader = DataLoader(pixels, self.batch_size, num_workers=self.workers, generator=torch.Generator())
        for pixel_values in started(loader):
            yield encode_pixels(self.model, pixel_values)

    def tokens(self) -> Iterator[tuple[int, torch.Tensor]]:
        """(row, token states (1, tokens, width)) of each image of this rank."""
        weight = next(self.model.parameters())
        batches = [self.stored] if self.stored is not None else (tokens for tokens, _ in self._encode())
        states = (tokens.to(weight.device, weight.dtype) for batch in batches for tokens in batch.split(1))
        yield from zip(self.rows, states, strict=False)  # a rank without an image encodes one: see `_encode`


class TextFeatures:
    """Unit vectors and token states of all texts, on every rank.

    Args:
        storage: where token states are kept; None where there will be no re-ranking.

    Attributes:
        features: (texts, projection_dim).
        lengths: (texts,) tokens of each text.
    """

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
        # A rank without a text encodes the first one, to know the width of what it gathers.
        local = torch.tensor(shard(len(texts), rank()) or range(1))
        local = local[self.lengths[local].argsort(stable=True)]  # texts of equal length together: less padding
        self.stored: torch.Tensor | None = None
        local_states: torch.Tensor | None = None
        with failing_together(), progress_bar(len(local), "texts") as bar:
            for number, rows in enumerate(local.split(batch_size)):
                output = self._encode(rows)
                states, pooled = output.last_hidden_state, full_precision(output.pooler_output)
                if number == 0:
                    features = pooled.new_empty((len(local), pooled.shape[1]))
                    local_states = self._allocate(storage, len(local), states)
                positions = (rows - local.min()).to(self.device)
                features[positions] = pooled
                if local_states is not None:
                    at = positions.to(local_states.device)
                    local_states[at, : states.shape[1]] = states.to(local_states.device, local_states.dtype)
                bar.update(len(rows))
        self.features = gather_shards(features[: len(shard(len(texts), rank()))], len(texts))
        if self.stored is not None and local_states is not self.stored:
            assert local_states is not None
            self._gather_states(local_states)

    def _allocate(self, storage: TokenStorage | None, local: int, states: torch.Tensor) -> torch.Tensor | None:
        """Room for the token states of all texts (`stored`), and, as returned, for those of this rank's `local` texts.

        On one rank the two are the same table. There is room for both or for neither.
        """
        if storage is None:
            return None
        shape = (self.input_ids.shape[1], states.shape[2])
        self.stored = storage.allocate((len(self.input_ids), *shape), states)
        if world_size() == 1 or self.stored is None:
            return self.stored
        return storage.allocate((local, *shape), states)

    def _gather_states(self, local_states: torch.Tensor) -> None:
        """Fill `stored` from the token states of all ranks, some rows at a time."""
        assert self.stored is not None
        count = len(self.stored)
        shards = [shard(count, each) for each in range(world_size())]
        for start in range(0, max(len(rows) for rows in shards), ROWS_GATHERED_AT_ONCE):
            block = local_states[start : start + ROWS_GATHERED_AT_ONCE]
            shape = (ROWS_GATHERED_AT_ONCE, *local_states.shape[1:])
            padded = torch.zeros(shape, dtype=local_states.dtype, device=self.device)
            padded[: len(block)] = block.to(self.device)
            for rows, part in zip(shards, gather_rows(padded).chunk(world_size()), strict=True):
                target = rows[start : start + ROWS_GATHERED_AT_ONCE]
                self.stored[target.start : target.stop] = part[: len(target)].to(self.stored.device)

    def _trimmed(self, rows: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        """Rows of a table (texts, tokens), cut to the longest of these texts, on the model's device."""
        return table[rows, : int(self.lengths[rows].max())].to(self.device)

    def _encode(self, rows: torch.Tensor) -> Any:
        return self.model.get_text_features(
            self._trimmed(rows, self.input_ids), self._trimmed(rows, self.attention_mask)
        )

    def states(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Token states (rows, tokens, width) and attention mask (rows, tokens) of some texts."""
        attention_mask = self._trimmed(rows, self.attention_mask)
        if self.stored is None:
            return self._encode(rows).last_hidden_state, attention_mask
        states = self.stored[rows.to(self.stored.device), : attention_mask.shape[1]]
        return states.to(self.device, self.dtype), attention_mask
