"""Rows from tar and zip archives, in the form of WebDataset: files that differ in their ending only are one row."""

import json
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import datasets

from .columns import missing_column
from .fields import NotText, field_of, parse_json, texts_of
from .files import PICTURE_ENDINGS, UNREADABLE, BadRow, unreadable

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


@dataclass
class _Member:
    name: str
    size: int
    read: Callable[[], bytes]


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
            _Member(info.name, info.size, lambda info=info: archive.extractfile(info).read())  # type: ignore[misc]
            for info in archive.getmembers()
            if info.isfile()
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


def read_archives(shards: Sequence[str], fields: Sequence[Field], strict: bool, **_: Any) -> Iterator[dict[str, Any]]:
    """The rows of archives, one after the other.

    Args:
        strict: raise where a caption is no text; else it is left as it is.

    Raises:
        ValueError: an archive is damaged, or lacks a field in all of its rows (names those that it has), or a caption
            is no text (names archive, file and type).
    """
    wanted = list(dict.fromkeys(ending for field in fields for ending in field.endings))
    for shard in shards:
        try:
            with _open(Path(shard)) as archive:
                members = _members(archive)
                _check_fields(shard, members, fields)
                for row in _samples(members, wanted, len({field.endings for field in fields})):
                    made = {field.column: _value(field, row, shard) for field in fields}
                    if strict and "captions" in made:
                        try:
                            made["captions"] = texts_of(made["captions"])
                        except NotText as problem:
                            name = next(iter(row.values())).name
                            raise BadRow(f"{shard}, {name}: its caption is {problem.reason}, no text") from problem
                    yield made
        except UNREADABLE as error:
            raise unreadable(shard, [Path(shard)], error) from error


def _is_there(members: Sequence[_Member], field: Field) -> bool:
    return any(_split(member.name, field.endings) for member in members)


def _check_fields(shard: str, members: Sequence[_Member], fields: Sequence[Field]) -> None:
    for field in fields:
        if not _is_there(members, field):
            present = sorted({_parts(member.name)[-1].lower().split(".", 1)[-1] for member in members})
            name = ";".join(field.endings)
            raise missing_column(shard, name, present)


def load_archives(
    files: Sequence[Path], columns: Mapping[str, str], streaming: bool, optional: Iterable[str] = ()
) -> Any:
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
    options = {"shards": shards, "fields": tuple(fields), "strict": not streaming, "stamps": (_FORM, *stamps)}
    if streaming:  # `datasets` divides the lists in the options among ranks, and leaves tuples whole
        return datasets.IterableDataset.from_generator(read_archives, gen_kwargs=options)
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
