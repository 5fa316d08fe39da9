"""What a run folder tells."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

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
            ValueError: a file is not what its name says.
        """
        folder = Path(folder)
        config, versions, log = folder / "config.yaml", folder / "versions.json", folder / "log.jsonl"
        return cls(
            folder,
            (yaml.safe_load(config.read_text(encoding="utf-8")) or {}) if config.exists() else {},
            json.loads(versions.read_text(encoding="utf-8")) if versions.exists() else {},
            read_log(log) if log.exists() else RunLog(),
        )

    @property
    def method(self) -> str:
        """The name of the method that was trained."""
        return str(self.log.run.get("method") or self.config.get("method") or "albef")
