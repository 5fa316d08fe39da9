"""Finding pictures by a text or by another picture: contrastive features in an index, matching for the best of them.

The two stages are those of `evaluation.retrieval` (paper, section 6): cosine similarity ranks all pictures, and the
matching logit gives the first `rerank` of a text a new order. One process; pictures are read a batch at a time.
"""

import hashlib
import importlib.util
import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from datasets.search import FaissIndex
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader
from tqdm import tqdm

from ..data.images import decode_image
from ..evaluation.retrieval import TOKEN_MEMORY, evaluation_mode
from ..evaluation.retrieval_features import PixelRows, TextSide, TokenStorage, encode_pixels
from ..evaluation.retrieval_ranking import SIMILARITIES_AT_ONCE, match_image
from ..modeling_albef_pretraining import AlbefForPreTraining
from ..processing_albef import AlbefProcessor

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
DTYPES = {"float32": torch.float32, "float16": torch.float16}
SEARCHES = ("auto", "exact", "faiss")
_FEATURES, _DESCRIPTION = "features.safetensors", "retriever.json"


@dataclass
class Found:
    """Pictures of each query, best first; fewer columns where fewer are indexed.

    Args:
        rows: (queries, k) rows of `AlbefRetriever.images`.
        scores: (queries, k) cosine similarity, or the matching logit where the query was re-ranked: comparable within
            one query only, and not a number for pictures behind those that were re-ranked.
    """

    rows: np.ndarray
    scores: np.ndarray


class _Readable(PixelRows):
    """Pixels, or the reason why there are none."""

    def __getitem__(self, position: int) -> Any:
        try:
            return super().__getitem__(position)
        except (ValueError, OSError) as error:
            return str(error)


class AlbefRetriever:
    """An index of pictures, and the model that made it.

    Args:
        model: an ALBEF model; with a matching head (`AlbefForPreTraining`) it can also re-rank.
        processor: its processor.
        max_length: tokens of a text, as in `evaluate_retrieval`.
        batch_size: pictures, and texts, encoded at a time.
        search: `exact` (blocks of a matrix product), `faiss` (an `IndexFlatIP` through `datasets`, which holds a
            float32 copy of its own), or `auto`: faiss where it is installed and features are float32.

    Attributes:
        images: the data set that was indexed, with a column `image`; None after loading without it.
        rows: (n,) the row of each indexed picture; features: (n, projection_dim) unit vectors.
        skipped: (row, reason) of each picture that could not be read.

    Example:

        >>> retriever = AlbefRetriever.from_pretrained("runs/quickstart/model").index("pictures/")
        >>> retriever.search("a red car", k=5, rerank=32).rows
    """

    def __init__(
        self,
        model: Any,
        processor: AlbefProcessor,
        *,
        max_length: int = 25,
        batch_size: int = 64,
        search: str = "auto",
    ) -> None:
        if search not in SEARCHES:
            raise ValueError(f"search must be one of {', '.join(SEARCHES)}, not {search!r}")
        self.model, self.processor = model, processor
        self.max_length, self.batch_size, self.how = max_length, batch_size, search
        self.images: datasets.Dataset | None = None
        self.folder: Path | None = None
        self.rows = torch.empty(0, dtype=torch.int64)
        self.features = torch.empty(0, 0)
        self.skipped: list[tuple[int, str]] = []
        self._faiss: FaissIndex | None = None

    @classmethod
    def from_pretrained(cls, name: str | Path, *, revision: str | None = None, **options: Any) -> "AlbefRetriever":
        """The model and processor of a folder or Hub id. revision: a branch, tag or commit, to pin it."""
        model = AlbefForPreTraining.from_pretrained(name, revision=revision)
        return cls(model.eval(), AlbefProcessor.from_pretrained(name, revision=revision), **options)

    # -- indexing -----------------------------------------------------------------------------------------------------

    def index(
        self,
        images: str | Path | datasets.Dataset,
        *,
        image_column: str = "image",
        dtype: str = "float32",
        workers: int = 0,
    ) -> "AlbefRetriever":
        """Encode all pictures of a folder (and the folders in it) or of a data set, in place of what was indexed.

        Pictures that cannot be read are left out, listed in `skipped`, and counted in one warning.

        Args:
            dtype: in which features are kept: float32, or float16 at half the memory.
            workers: processes that decode; 0 decodes in this one.

        Raises:
            ValueError: no such folder or column, an unknown dtype, or not one readable picture.
        """
        if dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}")
        self.folder = None if isinstance(images, datasets.Dataset) else Path(images)
        self.images = _as_dataset(images, image_column)
        count = len(self.images)
        rows, features, filled = torch.empty(count, dtype=torch.int64), None, 0
        self.skipped, self._faiss = [], None
        with (
            evaluation_mode(self.model),
            torch.inference_mode(),
            tqdm(total=count, desc="indexing", unit="image") as bar,
        ):
            for start, pixels in self._batches(range(count), workers):
                readable = [each for each in pixels if isinstance(each, torch.Tensor)]
                if readable:
                    vectors = encode_pixels(self.model, torch.stack(readable))[1].to("cpu", DTYPES[dtype])
                    if features is None:
                        features = torch.empty(count, vectors.shape[1], dtype=DTYPES[dtype])
                    features[filled : filled + len(vectors)] = vectors
                for row, each in enumerate(pixels, start=start):
                    if isinstance(each, torch.Tensor):
                        rows[filled] = row
                        filled += 1
                    else:
                        self.skipped.append((row, each))
                bar.update(len(pixels))
        if features is None:
            reason = f"; the first: {self.skipped[0][1]}" if self.skipped else ""
            raise ValueError(f"none of {count} pictures of {_shown(images)} could be read{reason}")
        if self.skipped:
            row, reason = self.skipped[0]
            warnings.warn(f"{len(self.skipped)} of {count} pictures left out; row {row}: {reason}", stacklevel=2)
        self.rows, self.features = rows[:filled].clone(), features[:filled].clone() if self.skipped else features
        return self

    def _batches(self, rows: Sequence[int], workers: int = 0) -> Any:
        """(position of the first, pixels or reasons) of the pictures of some rows, in order."""
        pictures = _Readable(self.images, self.processor, rows)  # type: ignore[arg-type]
        loader = DataLoader(
            pictures, self.batch_size, num_workers=workers, generator=torch.Generator(), collate_fn=list
        )
        for number, pixels in enumerate(loader):
            yield number * self.batch_size, pixels

    # -- searching ----------------------------------------------------------------------------------------------------

    def search(self, queries: Any, k: int = 10, rerank: int = 0) -> Found:
        """The k nearest pictures of each query.

        Args:
            queries: a text or a list of texts; or a picture (PIL image, bytes, `Path`) or a list of pictures.
            k: how many.
            rerank: so many of the nearest get a new order by image-text matching; 0 for none. Texts only.

        Raises:
            ValueError: nothing is indexed, no query, k below 1, or re-ranking that is not possible (says why).
        """
        queries = list(queries) if isinstance(queries, (list, tuple)) else [queries]
        by_text = all(isinstance(query, str) for query in queries)
        if not len(self.rows):
            raise ValueError("nothing is indexed: call index(...) first")
        if not queries or k < 1 or rerank < 0:
            raise ValueError(
                f"need a query, k at least 1 and rerank at least 0: {len(queries)} queries, {k}, {rerank}"
            )
        if not by_text and any(isinstance(query, str) for query in queries):
            raise ValueError("texts and pictures in one call; a string is a text, pathlib.Path(...) names a picture")
        if rerank:
            self._check_rerank(by_text)
        with evaluation_mode(self.model), torch.inference_mode():
            if by_text:
                storage = TokenStorage(TOKEN_MEMORY) if rerank else None
                texts = TextSide(self.model, self.processor, queries, self.batch_size, self.max_length, storage)
                vectors = texts.features.cpu()
            else:
                vectors = self._encode_pictures(queries)
            scores, positions = self._nearest(vectors, min(max(k, rerank), len(self.rows)))
            if rerank:
                scores, positions = self._rerank(texts, scores, positions, rerank)
        return Found(self.rows[positions[:, :k]].numpy(), scores[:, :k].numpy())

    def _check_rerank(self, by_text: bool) -> None:
        if not by_text:
            raise ValueError("matching compares a picture with a text: rerank must be 0 for queries that are pictures")
        if not hasattr(self.model, "matching_logits"):
            raise ValueError(f"{type(self.model).__name__} has no matching head to re-rank with: use rerank=0")
        if self.images is None:
            raise ValueError("re-ranking reads the pictures again: load the index with images=...")

    def _encode_pictures(self, pictures: Sequence[Any]) -> torch.Tensor:
        vectors = []
        for start in range(0, len(pictures), self.batch_size):
            batch = [decode_image(picture) for picture in pictures[start : start + self.batch_size]]
            pixels = torch.as_tensor(self.processor(images=batch, return_tensors="pt")["pixel_values"])
            vectors.append(encode_pixels(self.model, pixels)[1].cpu())
        return torch.cat(vectors)

    def _nearest(self, queries: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Unit vectors (queries, projection_dim) -> similarities and positions (queries, k), best first."""
        if self.how == "faiss" or (
            self.how == "auto" and self.features.dtype == torch.float32 and importlib.util.find_spec("faiss")
        ):
            return self._nearest_by_faiss(queries, k)
        return nearest(queries, self.features, k)

    def _nearest_by_faiss(self, queries: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        if self._faiss is None:
            self._faiss = FaissIndex(metric_type=0)  # inner product
            self._faiss.add_vectors(self.features.float().numpy())
        found = self._faiss.search_batch(queries.float().numpy(), k)
        return torch.from_numpy(np.array(found.total_scores)), torch.from_numpy(np.array(found.total_indices))

    def _rerank(
        self, texts: TextSide, scores: torch.Tensor, positions: torch.Tensor, rerank: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The first `rerank` of each text in the order of matching; the others behind them, in their order."""
        shortlist = positions[:, :rerank]
        matching = torch.full(shortlist.shape, float("-inf"))
        wanted = shortlist.unique()  # each picture is encoded and projected once, for all texts that ask for it
        for start, pixels in self._batches(self.rows[wanted].tolist()):
            unreadable = [each for each in pixels if isinstance(each, str)]
            if unreadable:
                raise ValueError(f"a picture that was indexed can no longer be read: {unreadable[0]}")
            tokens, _ = encode_pixels(self.model, torch.stack(pixels))
            for position, states in zip(wanted[start : start + len(pixels)], tokens.split(1), strict=True):
                asking, place = (shortlist == position).nonzero(as_tuple=True)
                matching[asking, place] = match_image(self.model, states, texts, asking)
        matching, order = matching.sort(dim=1, descending=True, stable=True)
        behind = torch.full_like(scores[:, rerank:], float("nan"))
        return (
            torch.cat([matching, behind], dim=1),
            torch.cat([shortlist.gather(1, order), positions[:, rerank:]], dim=1),
        )

    # -- saving and loading -------------------------------------------------------------------------------------------

    def save(self, folder: str | Path) -> Path:
        """Features as safetensors, the rest as JSON. The pictures and the model stay where they are."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_file({"features": self.features, "rows": self.rows}, folder / _FEATURES)
        config = self.model.config
        description = {
            "format": 1,
            "model": config._name_or_path,
            "revision": getattr(config, "_commit_hash", None),
            "fingerprint": fingerprint(self.model),
            "max_length": self.max_length,
            "folder": None if self.folder is None else str(self.folder),
            "files": None if self.folder is None or self.images is None else list(self.images["file"]),
            "skipped": self.skipped,
            "sha256": _digest(folder / _FEATURES),
        }
        scratch = folder / f".{_DESCRIPTION}.incomplete"
        scratch.write_text(json.dumps(description, indent=1), encoding="utf-8")
        os.replace(scratch, folder / _DESCRIPTION)
        return folder

    @classmethod
    def load(
        cls,
        folder: str | Path,
        model: Any = None,
        processor: AlbefProcessor | None = None,
        *,
        images: datasets.Dataset | str | Path | None = None,
        image_column: str = "image",
        **options: Any,
    ) -> "AlbefRetriever":
        """What `save` wrote.

        Args:
            model, processor: those it was made with; left out, they are loaded by their id and revision.
            images: what was indexed, for re-ranking; left out, a folder is found again where it was.
            options: `batch_size` and `search`, as for the class.

        Raises:
            ValueError: a file that is missing or damaged, another model, or other pictures; names it.
        """
        folder = Path(folder)
        description, tensors = _read(folder)
        name, revision = description["model"], description["revision"]
        if model is None:
            model = AlbefForPreTraining.from_pretrained(name, revision=revision).eval()
        if processor is None:
            processor = AlbefProcessor.from_pretrained(name, revision=revision)
        if fingerprint(model) != description["fingerprint"]:
            raise ValueError(
                f"{folder} was made with {name} (revision {revision}), and "
                f"{model.config._name_or_path or 'this model'} has other weights: load that one, or index anew"
            )
        retriever = cls(model, processor, max_length=description["max_length"], **options)
        retriever.features, retriever.rows = tensors["features"], tensors["rows"]
        retriever.skipped = [(row, reason) for row, reason in description["skipped"]]
        if description["folder"] is not None and not isinstance(images, datasets.Dataset):
            root = Path(images or description["folder"])
            retriever.folder = root
            retriever.images = _files_dataset(root, description["files"]) if root.is_dir() else None
        elif images is not None:
            retriever.images = _as_dataset(images, image_column)
        indexed = int(retriever.rows.max()) + 1
        if retriever.images is not None and len(retriever.images) < indexed:
            raise ValueError(f"{folder} was made of at least {indexed} pictures, not of {len(retriever.images)}")
        return retriever


def nearest(queries: torch.Tensor, features: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Exact search: similarities and positions (queries, k), best first, in blocks that bound memory.

    Args:
        queries: unit vectors (queries, dim), float32.
        features: unit vectors (n, dim), float32 or float16; products are float32.
    """
    scores, positions = [], []
    columns = min(len(features), SIMILARITIES_AT_ONCE // 16)
    for block in queries.split(max(1, SIMILARITIES_AT_ONCE // columns)):
        best = torch.empty(len(block), 0, dtype=queries.dtype)
        where = torch.empty(len(block), 0, dtype=torch.int64)
        for start in range(0, len(features), columns):
            part = features[start : start + columns].to(queries.dtype)
            found, place = (block @ part.T).topk(min(k, len(part)), dim=1)
            best, order = torch.cat([best, found], dim=1).topk(min(k, best.shape[1] + found.shape[1]), dim=1)
            where = torch.cat([where, place + start], dim=1).gather(1, order)
        scores.append(best)
        positions.append(where)
    return torch.cat(scores), torch.cat(positions)


def fingerprint(model: Any) -> str:
    """A hash of the towers and projections, heads and momentum copies left out. Weights are rounded to bfloat16 first,
    so that a model loaded in float32 and in bfloat16 is the same."""
    digest = hashlib.sha256()
    for name, value in sorted(getattr(model, "albef", model).state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().reshape(-1).to(torch.bfloat16).view(torch.uint8).numpy())
    return digest.hexdigest()


def _shown(images: Any) -> str:
    return "the data set" if isinstance(images, datasets.Dataset) else str(images)


def _files_dataset(folder: Path, files: list[str]) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"image": [str(folder / name) for name in files], "file": files})


def _as_dataset(images: str | Path | datasets.Dataset, column: str) -> datasets.Dataset:
    """A data set whose column `image` is not decoded when it is read."""
    if not isinstance(images, datasets.Dataset):
        folder = Path(images)
        if not folder.is_dir():
            raise ValueError(f"no such folder: {folder}")
        found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
        if not found:
            raise ValueError(f"{folder} has no pictures ({', '.join(SUFFIXES)})")
        return _files_dataset(folder, [str(path.relative_to(folder)) for path in found])
    if column not in images.column_names:
        raise ValueError(f"no column {column!r}; there are: {', '.join(images.column_names)}")
    if column != "image":
        images = images.remove_columns([name for name in ("image",) if name in images.column_names])
        images = images.rename_column(column, "image")
    if isinstance(images.features["image"], datasets.Image):
        images = images.cast_column("image", datasets.Image(decode=False))
    return images


def _digest(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    for name in (_DESCRIPTION, _FEATURES):
        if not (folder / name).is_file():
            raise ValueError(f"{folder / name} is missing: not an index that was saved")
    try:
        description = json.loads((folder / _DESCRIPTION).read_text(encoding="utf-8"))
        expected = description["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / _DESCRIPTION} is damaged: {error!r}") from error
    if _digest(folder / _FEATURES) != expected:
        raise ValueError(f"{folder / _FEATURES} is damaged: it is not what was written")
    try:
        return description, load_file(folder / _FEATURES)
    except SafetensorError as error:
        raise ValueError(f"{folder / _FEATURES} cannot be read: {error}") from error


__all__ = ["AlbefRetriever", "Found", "nearest"]
