"""Finding pictures by a text or by another picture: contrastive features in an index, matching for the best of them.

The two steps are those of `evaluation.retrieval` (paper section 6): cosine similarity ranks all pictures, and for a
text the matching logit gives the first `rerank` of them a new order. It runs in one process and reads pictures batch
by batch.
"""

import importlib.util
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from datasets.search import FaissIndex
from torch.utils.data import DataLoader
from tqdm import tqdm

from ..data.batches import started
from ..data.images import decode_image
from ..evaluation.mode import evaluation_mode
from ..evaluation.retrieval import TOKEN_MEMORY
from ..evaluation.retrieval_features import PixelDataset, TextFeatures, TokenStorage, encode_pixels
from ..evaluation.retrieval_ranking import match_image
from ..modeling_albef_pretraining import AlbefForPreTraining
from ..processing_albef import AlbefProcessor
from .exact_search import nearest
from .index_files import files_dataset, fingerprint, picture_dataset, read_index, write_index

DTYPES = {"float32": torch.float32, "float16": torch.float16}
SEARCHES = ("auto", "exact", "faiss")


@dataclass
class Found:
    """The pictures found for each query, best first. There are fewer columns where fewer than k pictures are indexed.

    Args:
        rows: (queries, k) rows of `AlbefRetriever.images`.
        scores: (queries, k) cosine similarities. After re-ranking they are matching logits, which can be compared
            within one query only, and not a number for pictures that were not re-ranked.
    """

    rows: np.ndarray
    scores: np.ndarray


class _PixelsOrReasons(PixelDataset):
    """The pixels of each picture, or the reason why it cannot be read."""

    def __getitem__(self, position: int) -> Any:
        try:
            return super().__getitem__(position)
        except (ValueError, OSError) as error:
            return str(error)


class AlbefRetriever:
    """An index of pictures, with the model that made it.

    Args:
        model: an ALBEF model; re-ranking needs one with a matching head, such as `AlbefForPreTraining`.
        processor: the model's processor.
        max_length: longer texts are cut to this many tokens.
        batch_size: how many pictures, or texts, are encoded at a time.
        search: `exact` (a matrix product in blocks), `faiss` (an `IndexFlatIP` through `datasets`, which keeps its own
            float32 copy of the features), or `auto`: faiss where it is installed and the features are float32.

    Attributes:
        images: the indexed data set, with a column `image`; None if the index was loaded without it.
        rows: (n,) the row of each indexed picture.
        features: (n, projection_dim) the unit vector of each indexed picture.
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
        """Load model and processor from a folder or Hub id. revision: a branch, tag or commit of the Hub."""
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
        """Encode all pictures of a folder and its subfolders, or of a data set. A former index is replaced.

        Pictures that cannot be read are left out and listed in `skipped`, and a warning says how many they are.

        Args:
            image_column: column of the data set that holds the pictures.
            dtype: what features are kept in: float32, or float16 for half the memory.
            workers: processes that decode pictures; 0: this process does it.

        Raises:
            ValueError: the folder or column does not exist, the dtype is unknown, or no picture can be read.
        """
        if dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}")
        self.folder = None if isinstance(images, datasets.Dataset) else Path(images)
        self.images = picture_dataset(images, image_column)
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
            where = "the data set" if self.folder is None else self.folder
            raise ValueError(f"none of {count} pictures of {where} could be read{reason}")
        if self.skipped:
            row, reason = self.skipped[0]
            warnings.warn(f"{len(self.skipped)} of {count} pictures left out; row {row}: {reason}", stacklevel=2)
        self.rows, self.features = rows[:filled].clone(), features[:filled].clone() if self.skipped else features
        return self

    def _batches(self, rows: Sequence[int], workers: int = 0) -> Iterator[tuple[int, list[Any]]]:
        """Batches of some rows: the position of the first, and the pixels or reasons of all, in order."""
        pictures = _PixelsOrReasons(self.images, self.processor, rows)  # type: ignore[arg-type]
        loader = DataLoader(
            pictures, self.batch_size, num_workers=workers, generator=torch.Generator(), collate_fn=list
        )
        for number, pixels in enumerate(started(loader)):
            yield number * self.batch_size, pixels

    # -- searching ----------------------------------------------------------------------------------------------------

    def search(self, queries: Any, k: int = 10, rerank: int = 0) -> Found:
        """Find the k nearest pictures of each query.

        Args:
            queries: a text or a list of texts; or a picture (PIL image, bytes, `Path`) or a list of pictures.
            k: how many pictures to find.
            rerank: how many of the nearest pictures get a new order by image-text matching; 0 for none. For texts
                only.

        Raises:
            ValueError: nothing is indexed, there is no query, k is below 1, or re-ranking is not possible (says why).
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
                texts = TextFeatures(self.model, self.processor, queries, self.batch_size, self.max_length, storage)
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
        """Unit vectors (queries, projection_dim) -> similarities and positions in `features`, (queries, k) each."""
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
        self, texts: TextFeatures, scores: torch.Tensor, positions: torch.Tensor, rerank: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Order the first `rerank` pictures of each text by matching. The others stay behind, in their old order."""
        shortlist = positions[:, :rerank]
        matching = torch.full(shortlist.shape, float("-inf"))
        wanted = shortlist.unique()  # each picture is encoded and projected once, for all texts that shortlist it
        for start, pixels in self._batches(self.rows[wanted].tolist()):
            unreadable = [each for each in pixels if isinstance(each, str)]
            if unreadable:
                raise ValueError(f"an indexed picture can no longer be read: {unreadable[0]}")
            tokens, _ = encode_pixels(self.model, torch.stack(pixels))
            for position, states in zip(wanted[start : start + len(pixels)], tokens.split(1), strict=True):
                asking, column = (shortlist == position).nonzero(as_tuple=True)
                matching[asking, column] = match_image(self.model, states, texts, asking)
        matching, order = matching.sort(dim=1, descending=True, stable=True)
        behind = torch.full_like(scores[:, rerank:], float("nan"))
        return (
            torch.cat([matching, behind], dim=1),
            torch.cat([shortlist.gather(1, order), positions[:, rerank:]], dim=1),
        )

    # -- saving and loading -------------------------------------------------------------------------------------------

    def save(self, folder: str | Path) -> Path:
        """Write the features as safetensors and the rest as JSON. The pictures and the model stay where they are."""
        folder, config = Path(folder), self.model.config
        description = {
            "model": config._name_or_path,
            "revision": getattr(config, "_commit_hash", None),
            "fingerprint": fingerprint(self.model),
            "max_length": self.max_length,
            "folder": None if self.folder is None else str(self.folder),
            "files": None if self.folder is None or self.images is None else list(self.images["file"]),
            "skipped": self.skipped,
        }
        write_index(folder, self.features, self.rows, description)
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
        """Read what `save` wrote.

        Args:
            model, processor: those that made the index; left out, they are loaded by their id and revision.
            images: the indexed folder or data set, which re-ranking reads; left out, a folder is expected where it
                was.
            image_column: column of the data set that holds the pictures.
            options: `batch_size` and `search`, as for the class.

        Raises:
            ValueError: a file is missing or damaged (names it), the model has other weights, or there are too few
                pictures.
        """
        folder = Path(folder)
        description, tensors = read_index(folder)
        name, revision = description["model"], description["revision"]
        if model is None:
            model = AlbefForPreTraining.from_pretrained(name, revision=revision).eval()
        if processor is None:
            processor = AlbefProcessor.from_pretrained(name, revision=revision)
        if fingerprint(model) != description["fingerprint"]:
            raise ValueError(
                f"{folder} was made with {name} (revision {revision}), and "
                f"{model.config._name_or_path or 'this model'} has other weights: load the former, or index again"
            )
        retriever = cls(model, processor, max_length=description["max_length"], **options)
        retriever.features, retriever.rows = tensors["features"], tensors["rows"]
        retriever.skipped = [(row, reason) for row, reason in description["skipped"]]
        if description["folder"] is not None and not isinstance(images, datasets.Dataset):
            root = Path(images or description["folder"])
            retriever.folder = root
            retriever.images = files_dataset(root, description["files"]) if root.is_dir() else None
        elif images is not None:
            retriever.images = picture_dataset(images, image_column)
        indexed = int(retriever.rows.max()) + 1
        if retriever.images is not None and len(retriever.images) < indexed:
            raise ValueError(f"{folder} was made of at least {indexed} pictures, not of {len(retriever.images)}")
        return retriever


__all__ = ["AlbefRetriever", "Found"]
