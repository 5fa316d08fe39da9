"""Which settings may differ when a run goes on. The table in docs/resuming.md is made of these sets."""

from collections.abc import Mapping
from typing import Any

# The state would not fit, or would mean something else: refused.
FIXED = {
    "method", "method_options", "vision_config", "text_config", "vision_pooling", "image_size", "projection_dim",
    "queue_size", "tokenizer", "seed", "optimizer", "decay_vectors", "task", "answer_list", "answers",
}  # fmt: skip

# Where the data are and how they are read: free as long as the rows are the same.
DATA = {
    "dataset", "dataset_options", "mixture", "split", "revision", "image_column", "caption_column", "id_column",
    "label_column", "image_root", "columns", "image_suffix", "streaming", "streaming_rows", "streaming_window",
}  # fmt: skip

# Of no consequence for what is trained: neither printed nor recorded.
SILENT = {"resume", "overwrite", "dry_run", "output_dir"}


def compare_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Compare two identities of a run.

    Args:
        before, now: `config`, `data` and `versions`, as a checkpoint carries them.

    Returns: what differs, name -> (before, now).

    Raises:
        ValueError: the run cannot go on with what differs; names all such settings with their values.
    """
    old, new = before.get("config", {}), now["config"]
    if not new.get("text_model"):  # left out, the tokenizer is this one
        old, new = ({**each, "tokenizer": each.get("tokenizer") or "wordpiece"} for each in (old, new))
    changed = {
        key: (old.get(key), new[key]) for key in new if key in old and old[key] != new[key] and key not in SILENT
    }
    other_data = "data" in before and before["data"] != now["data"]
    refused = FIXED | (DATA if other_data else set())
    wrong = {key: values for key, values in changed.items() if key in refused}
    if other_data:
        wrong["the rows of the data"] = (before["data"], now["data"])
    if other_data and before["data"].get("order", [1])[:1] != now["data"].get("order", [1])[:1]:
        raise ValueError(
            "the run began with a version of this package that puts the rows of the data in another order: it would "
            "see some again and others not at all. Finish it with that version "
            f"({before.get('versions', {}).get('albef-hf', 'unknown')}), or start a new run in another output_dir"
        )
    if wrong:
        listed = "; ".join(f"{key}: {was!r} before, {now_is!r} now" for key, (was, now_is) in wrong.items())
        raise ValueError(
            f"the run cannot go on with other settings of {listed}. Set them as they were, or start a new run in "
            "another output_dir"
        )
    versions = before.get("versions", {})
    changed |= {
        f"version of {name}": (versions[name], version)
        for name, version in now["versions"].items()
        if name in versions and versions[name] != version
    }
    return changed
