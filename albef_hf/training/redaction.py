"""Settings without the secrets in them."""

import re
from typing import Any

REDACTED = "REDACTED"
# Keys and values of data set options that nobody else may see.
_SECRET_KEY = re.compile(r"(?i)(^|[_-])(token|secret|password|passwd|credentials?|authorization|(api|access)?key)$")
_SECRET_VALUE = re.compile(
    r"\b(?:hf_|api_org_|sk-|gh[oprsu]_|github_pat_|AKIA)[A-Za-z0-9_\-]{12,}|://[^/@\s]+:[^/@\s]+@"
)


def redact(value: Any, key: str = "") -> Any:
    """A value with `REDACTED` in place of tokens, passwords and keys, by their names and by their form."""
    if isinstance(value, dict):
        return {name: redact(each, str(name)) for name, each in value.items()}
    if isinstance(value, list):
        return [redact(each, key) for each in value]
    if isinstance(value, str) and (value and _SECRET_KEY.search(key) or _SECRET_VALUE.search(value)):
        return REDACTED
    return value
