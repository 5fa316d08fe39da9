"""Rows from tar and zip archives, in the form of WebDataset: files that differ in their ending only are one row."""

import functools
import gzip
import json
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import datasets

from .columns import missing_column
from .fields import NotText, field_of, parse_json, texts_of
from .files import PICTURE_ENDINGS, UNREADABLE, BadRow, unreadable
from .shards import Kept, Shards, rows_of_files

MAX_TEXT_BYTES = 1_000_000
_FORM = 1  # of the rows that `datasets` keeps: to be raised when `read_archives` makes others of the same files


@dataclass(frozen=True)
class Field:
    """Where the values of a column are in an archive.

    Args:
        column: our name of the column.
        endings: of the files that hold it, without the first dot; several are alternatives.
        keys: inside the JSON of the file.
    """

    column: str
    endings: tuple[str, ...]
    keys: tuple[str, ...]

    @property
    def is_picture(self) -> bool:
        return all(f".{ending.rsplit('.', 1)[-1]}" in PICTURE_ENDINGS for ending in self.endings)


def parse_field(name: str, column: str) -> Field:
    """`jpg;png` -> two endings; `json.caption` -> the value under `caption` in files ending in .json."""
    if name.lower().startswith("json."):
        return Field(column, ("json",), tuple(name.split(".")[1:]))
    return Field(column, tuple(part.strip().lower().lstrip(".") for part in name.split(";") if part.strip()), ())


@dataclass(slots=True)
class _Member:
    name: str
    size: int
    read: Callable[[], bytes]


def _reader_of(archive: tarfile.TarFile, info: tarfile.TarInfo) -> Callable[[], bytes]:
    """What reads a file, without what else tar says of it where that is possible: there may be millions."""
    if info.issparse():
        return lambda: archive.extractfile(info).read()  # type: ignore[union-attr]
    return functools.partial(_read_at, archive.fileobj, info.offset_data, info.size)


def _read_at(handle: Any, offset: int, size: int) -> bytes:
    handle.seek(offset)
    data = handle.read(size)
    if len(data) < size:
        raise tarfile.ReadError("unexpected end of data")
    return data


def _members(archive: Any) -> list[_Member]:
    """The files in an open archive, hidden ones left out."""
    if isinstance(archive, zipfile.ZipFile):
        found = [
            _Member(info.filename, info.file_size, lambda info=info: archive.read(info))  # type: ignore[misc]
            for info in archive.infolist()
            if not info.is_dir()
        ]
    else:
        found = [
            _Member(info.name, info.size, _reader_of(archive, info)) for info in archive.getmembers() if info.isfile()
        ]
    return [member for member in found if not any(part.startswith((".", "__MACOSX")) for part in _parts(member.name))]


def _parts(name: str) -> tuple[str, ...]:
    return PurePosixPath(name.removeprefix("./")).parts


def _split(name: str, endings: Sequence[str]) -> tuple[str, str] | None:
    """The name of a row and the ending of a file, where it ends in one of `endings`, the longest first."""
    lower = name.lower()
    for ending in sorted(endings, key=len, reverse=True):
        if lower.endswith(f".{ending}") and _parts(lower)[-1] != f".{ending}":
            return name[: -len(ending) - 1], ending
    return None


def _samples(members: Sequence[_Member], endings: Sequence[str], complete: int) -> Iterator[dict[str, _Member]]:
    """The rows of an archive: ending -> file.

    A name may have dots: `v1.5.jpg` and `v1.5.txt` are a row, and so are `a.jpg` and `a.txt`, beside which
    `a.mask.jpg` is a further file of the same row and no row of its own.

    Args:
        complete: how many of the columns are there in a row that lacks none.
    """
    rows: dict[str, dict[str, _Member]] = {}
    for member in members:
        found = _split(member.name, endings)
        if found is not None:
            rows.setdefault(found[0], {})[found[1]] = member
    for key, row in rows.items():
        first_dot = key.rsplit("/", 1)[0] + "/" if "/" in key else ""
        stem = first_dot + _parts(key)[-1].split(".")[0]
        if stem != key and stem in rows and (len(row) < complete or complete == 1):
            continue
        yield row


def _open(path: Path) -> Any:
    return zipfile.ZipFile(path) if path.suffix.lower() == ".zip" else tarfile.open(path)


def _value(field: Field, row: Mapping[str, _Member], shard: str) -> Any:
    member = next((row[ending] for ending in field.endings if ending in row), None)
    if member is None:
        return None
    if field.is_picture:
        return {"bytes": member.read(), "path": member.name}
    if member.size > MAX_TEXT_BYTES:
        raise BadRow(f"{shard}, {member.name}: a text of {member.size:,} bytes; at most {MAX_TEXT_BYTES:,} are read")
    try:
        text = member.read().decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise BadRow(f"{shard}, {member.name}: not text in UTF-8 ({error})") from error
    value = field_of(text, field.keys) if field.keys else text
    if field.column == "captions":
        return parse_json(value) if isinstance(value, str) and field.endings == ("json",) else value
    return value if value is None or isinstance(value, str) else json.dumps(value)


def _rows(shard: str, archive: Any, fields: Sequence[Field]) -> list[dict[str, _Member]]:
    members = _members(archive)
    _check_fields(shard, members, fields)
    wanted = list(dict.fromkeys(ending for field in fields for ending in field.endings))
    return list(_samples(members, wanted, len({field.endings for field in fields})))


def read_archives(shards: Sequence[str], fields: Sequence[Field], **_: Any) -> Iterator[dict[str, Any]]:
    """The rows of archives, one after the other.

    Raises:
        ValueError: an archive is damaged, or lacks a field in all of its rows (names those that it has), or a caption
            is no text (names archive, file and type).
    """
    for shard in shards:
        try:
            with _open(Path(shard)) as archive:
                for row in _rows(shard, archive, fields):
                    made = {field.column: _value(field, row, shard) for field in fields}
                    if "captions" in made:
                        try:
                            made["captions"] = texts_of(made["captions"])
                        except NotText as problem:
                            name = next(iter(row.values())).name
                            raise BadRow(f"{shard}, {name}: its caption is {problem.reason}, no text") from problem
                    yield made
        except UNREADABLE as error:
            raise unreadable(shard, [Path(shard)], error) from error


class ArchiveShards(Shards):
    """Archives whose rows are read by number. A chunk is an archive.

    A zipped tar archive has no places that could be jumped to: one that is read is unpacked into a temporary file.

    Raises:
        ValueError: as `read_archives`.
    """

    def __init__(self, files: Sequence[Path], columns: Mapping[str, str]) -> None:
        self.fields = [parse_field(name, column) for column, name in columns.items()]
        names = [str(path) for path in files]
        kind = f"archive {_FORM} {sorted({field.endings for field in self.fields})}"
        sizes = rows_of_files(names, kind, lambda name: [len(self._open(name)[1])])
        self.files = [name for name, (size,) in zip(names, sizes, strict=True) if size]
        super().__init__([size for (size,) in sizes if size], None)
        self.keep(1, 1)

    def keep(self, places: int, rows: int) -> None:
        self._archives = Kept(2 * places)

    def _open(self, name: str) -> tuple[Any, list[dict[str, _Member]]]:
        try:
            if name.lower().endswith("gz"):
                whole = tempfile.TemporaryFile()  # noqa: SIM115
                with gzip.open(name) as packed:
                    shutil.copyfileobj(packed, whole)
                whole.seek(0)
                archive: Any = tarfile.open(fileobj=whole)  # noqa: SIM115
            else:
                archive = _open(Path(name))
            rows = _rows(name, archive, self.fields)
        except UNREADABLE as error:
            raise unreadable(name, [Path(name)], error) from error
        if isinstance(archive, tarfile.TarFile):
            archive.members = []  # type: ignore[attr-defined]  # what it knows of each file
        return archive, rows

    def __getitem__(self, row: int) -> Mapping[str, Any]:
        chunk, inside = self.place_of(row)
        name = self.files[chunk]
        _, rows = self._archives.get(chunk, lambda: self._open(name))
        self.rows_read += 1
        try:
            return {field.column: _value(field, rows[inside], name) for field in self.fields}
        except UNREADABLE as error:
            raise unreadable(name, [Path(name)], error) from error


def _is_there(members: Sequence[_Member], field: Field) -> bool:
    return any(_split(member.name, field.endings) for member in members)


def _check_fields(shard: str, members: Sequence[_Member], fields: Sequence[Field]) -> None:
    for field in fields:
        if not _is_there(members, field):
            present = sorted({_parts(member.name)[-1].lower().split(".", 1)[-1] for member in members})
            name = ";".join(field.endings)
            raise missing_column(shard, name, present)


def load_archives(files: Sequence[Path], columns: Mapping[str, str], optional: Iterable[str] = ()) -> Any:
    """Archives as a data set of the columns that are wanted.

    Args:
        columns: our name of a column -> its field, see `parse_field`.
        optional: those of our names that the first archive may lack; then the data set lacks them.
    """
    fields = [parse_field(name, column) for column, name in columns.items()]
    if optional:
        with _open(files[0]) as archive:
            members = _members(archive)
        fields = [field for field in fields if field.column not in optional or _is_there(members, field)]
    shards = [str(path) for path in files]
    # The sizes and times are there for the cache of `datasets`: changed files are read again.
    stamps = tuple((path.stat().st_size, path.stat().st_mtime_ns) for path in files)
    options = {"shards": shards, "fields": tuple(fields), "stamps": (_FORM, *stamps)}
    features = datasets.Features(
        {
            field.column: datasets.Image(decode=False)
            if field.is_picture
            else datasets.List(datasets.Value("string"))
            if field.column == "captions"
            else datasets.Value("string")
            for field in fields
        }
    )
    return datasets.Dataset.from_generator(read_archives, features=features, gen_kwargs=options)
