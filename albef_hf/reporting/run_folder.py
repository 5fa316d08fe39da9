"""Reading a run folder."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..model_folder import read_json
from .log import RunLog, read_log


@dataclass
class RunFolder:
    """The files of a run that reports and cards read. A missing file is empty here.

    Args:
        path: of the folder.
        config: content of config.yaml: all arguments of the run.
        versions: content of versions.json: package -> version.
        log: content of log.jsonl.
    """

    path: Path
    config: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, Any] = field(default_factory=dict)
    log: RunLog = field(default_factory=RunLog)

    @classmethod
    def read(cls, folder: Path | str) -> "RunFolder":
        """Read the files of a folder.

        Raises:
            ValueError: a file is damaged; names it.
        """
        folder = Path(folder)
        config, versions, log = folder / "config.yaml", folder / "versions.json", folder / "log.jsonl"
        return cls(
            folder,
            _read_yaml(config) if config.exists() else {},
            read_json(versions) if versions.exists() else {},
            read_log(log) if log.exists() else RunLog(),
        )

    @property
    def method(self) -> str:
        """The name of the method that was trained."""
        return str(self.log.run.get("method") or self.config.get("method") or "albef")


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is damaged: not YAML ({error})") from error
