"""From a model folder to the files that may be published: weights, configuration, code and card.

The state of an optimizer, a path of this machine or a token never leaves.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import CommitInfo, HfApi
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open

from ..model_folder import read_json
from ..remote_code import FILES
from .card_usage import NAME_LINE
from .model_card import is_hub_id, write_model_card

CONFIGURATIONS = (
    "config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "adapter_config.json",
)
PUBLISHED = (
    *CONFIGURATIONS,
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
    "adapter_model.safetensors",
    "tokenizer.json",
    "vocab.txt",
    "added_tokens.json",
    "README.md",
    "LICENSE",
    "curves.png",
    ".eval_results/*.yaml",
    *FILES,
)
# Keys of configurations that name where a model came from.
_NAMES_OF_ORIGIN = ("_name_or_path", "name_or_path", "base_model_name_or_path")
_ABSOLUTE = re.compile(r"^(/\S|~[/\\]|[A-Za-z]:[/\\]|file:)")
# Folders where people keep files. Any other word between slashes may be ordinary text.
_PATH = re.compile(
    r"(?:\b(?:s3|s3a|gs|gcs|az|abfss?|wasbs?|adl|hdfs|viewfs|smb|nfs|dbfs|file|ssh|sftp)://|\\\\[\w.-]+\\)[^\s\"'`)\]]+"
    r"|(?<![\w.:/])(?:/(?:home|Users|root|mnt|data|datasets|scratch|tmp|var|opt|work|srv|media|export|gpfs|lustre|nfs)/"
    r"|[A-Za-z]:\\)[^\s\"'`)\]]+"
)
_TOKEN = re.compile(
    r"\b(?:hf_|api_org_|sk-|gh[oprsu]_|github_pat_|glpat-|AKIA|ASIA|AIza|xox[abprs]-)[A-Za-z0-9_\-]{12,}"
    r"|(?i:aws_secret_access_key|aws_session_token|azure_storage_key|private_key|client_secret)\W{1,5}[A-Za-z0-9+/=_\-]{8,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----"
    r"|://[^/@\s:]+:[^/@\s]+@"
)
_EMAIL = re.compile(r"\b[\w.+-]+@[\w-]+(?:\.[\w-]+)*\.[A-Za-z]{2,}\b")
_NOT_READ = ("tokenizer.json", "vocab.txt", "added_tokens.json", "LICENSE")  # words of others
_SECRET_NAME = re.compile(r"(^|_)(TOKEN|SECRET|PASSWORD|KEY)$")


def find_model_folder(folder: Path | str) -> Path:
    """The model folder of a run, or the folder itself if it is a model folder.

    Raises:
        ValueError: neither has a saved model.
    """
    folder = Path(folder)
    for candidate in (folder / "model", folder):
        if (candidate / "config.json").is_file() or (candidate / "adapter_config.json").is_file():
            return candidate
    raise ValueError(f"{folder} is neither a run folder (with model/config.json) nor a model folder (config.json)")


def stage(folder: Path | str, target: Path | str, repo_id: str) -> list[str]:
    """Write into a new folder exactly what would be uploaded.

    Files are chosen by name, and all other files stay behind. Paths and tokens in configurations are blanked, the card
    names the repository, and a folder without a card gets one.

    Args:
        folder: of a run or of a model.
        target: must be empty or not exist.
        repo_id: of the repository, `owner/name`.

    Returns: the relative names of the files.

    Raises:
        ValueError: `repo_id` is no name, the model or its tokenizer is missing, the target is not empty, a file is a
            link or not what its name says, or a text has a token or a path of this machine; names the file and the
            line.
    """
    source, target = find_model_folder(folder), Path(target)
    owner, _, name = repo_id.partition("/")
    try:
        validate_repo_id(repo_id)
    except HFValidationError:
        name = ""
    if not owner or not name:
        raise ValueError(f"repo_id {repo_id!r} is no name of a repository: write OWNER/NAME")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} is {'not empty' if target.is_dir() else 'a file'}: give a new folder")
    if (source / "processor_config.json").is_file() and not any(source.glob("*tokenizer*.json")):
        raise ValueError(f"{source} has a processor without its tokenizer.json: save the processor anew")
    try:
        return _stage(source, target, repo_id)
    except Exception:
        shutil.rmtree(target, ignore_errors=True)  # so that nobody uploads by hand what was refused
        raise


def _stage(source: Path, target: Path, repo_id: str) -> list[str]:
    secrets = {value for name, value in os.environ.items() if _SECRET_NAME.search(name) and len(value) >= 8}
    private = _private_names(source)
    target.mkdir(parents=True, exist_ok=True)
    for path in _published(source):
        name = path.relative_to(source)
        if path.is_symlink():
            raise ValueError(f"{path} is a link, which may point at anything: save the model anew")
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        if path.name in CONFIGURATIONS:
            cleaned = _clean(read_json(path), secrets | private)
            (target / name).write_text(json.dumps(cleaned, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        else:
            shutil.copyfile(path, target / name)
    if not (target / "README.md").exists():
        write_model_card(source.parent, target, repository=repo_id)
    card = (target / "README.md").read_text(encoding="utf-8")
    line = f"name = {json.dumps(repo_id)}  # its id on the Hub"
    (target / "README.md").write_text(NAME_LINE.sub(lambda _: line, card), encoding="utf-8")
    written = sorted(path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file())
    if not any(each.endswith(".safetensors") for each in written):
        raise ValueError(f"{source} holds no weights (model.safetensors, or its shards)")
    for each in written:
        _check(target / each, source / each, secrets, private)
    return written


def upload(staged: Path | str, repo_id: str, private: bool = True) -> CommitInfo:
    """Push a folder that `stage` made, as one commit. An existing repository keeps its visibility."""
    api = HfApi()
    api.create_repo(repo_id, private=private, exist_ok=True)
    return api.upload_folder(repo_id=repo_id, folder_path=str(staged), commit_message="Upload model")


def _published(source: Path) -> Iterator[Path]:
    """The files that `PUBLISHED` names."""
    for path in sorted(source.rglob("*")):
        if path.is_symlink() and path.is_dir():  # whose files would be left out in silence
            raise ValueError(f"{path} is a link to a folder, which may point at anything: save the model anew")
        name = path.relative_to(source).as_posix()
        if any(fnmatch(name, pattern) and name.count("/") == pattern.count("/") for pattern in PUBLISHED):
            yield path


def _private_names(source: Path) -> set[str]:
    """Paths of this machine that no pattern can know: those of the folder and of the local data of its run."""
    names = {str(Path.home()), str(source.resolve()), str(source.parent.resolve())}
    run_config = source.parent / "config.yaml"
    config = yaml.safe_load(run_config.read_text(encoding="utf-8")) if run_config.is_file() else None
    for key, text in _strings(config):
        is_path = ("/" in text or "\\" in text) and " " not in text and (key == "image_root" or not is_hub_id(text))
        if is_path and key != "output_dir":
            names.add(text)
    return {name for name in names if len(name) > 3}


def _strings(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text in nested data, with its key."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for name, each in value.items():
            yield from _strings(each, name)
    elif isinstance(value, list):
        for each in value:
            yield from _strings(each, key)


def _clean(value: Any, hidden: set[str], key: str = "") -> Any:
    """A JSON value in which texts with paths, tokens or hidden texts are blanked."""
    if isinstance(value, dict):
        return {name: _clean(each, hidden, name) for name, each in value.items()}
    if isinstance(value, list):
        return [_clean(each, hidden) for each in value]
    if not isinstance(value, str):
        return value
    local_origin = key in _NAMES_OF_ORIGIN and not is_hub_id(value)
    found = _ABSOLUTE.match(value) or _PATH.search(value) or _TOKEN.search(value) or _EMAIL.search(value)
    return "" if local_origin or found or any(text in value for text in hidden) else value


def _check(path: Path, source: Path, secrets: set[str], private: set[str]) -> None:
    """Check a file that would be uploaded. source: the file that it comes from.

    Raises:
        ValueError: the file must not leave; names it by its source.
    """
    if path.suffix == ".png":
        if path.read_bytes()[:8] != b"\x89PNG\r\n\x1a\n":
            raise ValueError(f"{source} is not a PNG picture")
        return
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, "pt") as handle:
                lines = list((handle.metadata() or {}).values())
        except SafetensorError as error:
            raise ValueError(f"{source} is damaged: {error}") from error
    else:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"{source} is not text: {error}") from error
    for number, line in enumerate(lines, start=1):
        if _TOKEN.search(line) or any(secret in line for secret in secrets):
            raise ValueError(f"{source}, line {number}: a token or secret of this machine")
        found = _PATH.search(line)
        named = found.group() if found else next((name for name in private if name in line), None)
        if named and path.name not in _NOT_READ:
            raise ValueError(f"{source}, line {number}: a path of this machine, {named!r}")
        address = _EMAIL.search(line)
        if address and path.name not in _NOT_READ and not path.name.endswith(".py"):
            raise ValueError(f"{source}, line {number}: an e-mail address, {address.group()!r}")
