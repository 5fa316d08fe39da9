"""Checkpoint files that are malicious or broken."""

import os
import pickle
import re
import zipfile
from pathlib import Path

import pytest
import torch
from helpers import load_reference
from safetensors.torch import save_file

from albef_hf import load_original_checkpoint


class Hostile:
    """A class whose pickle makes a folder when it is read."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("slot", ["model", "args", "whole", "weight"])
@pytest.mark.parametrize("form", ["zip", "legacy", "bare pickle"])
def test_a_hostile_file_does_nothing(slot, form, tmp_path):
    marker, path = tmp_path / "marker", tmp_path / "hostile.pth"
    hostile = Hostile(marker)
    content = {
        "model": {"model": hostile},
        "args": {"model": {"temp": torch.ones(1)}, "args": hostile},
        "whole": hostile,
        "weight": {"model": {"temp": hostile}},
    }[slot]
    if form == "bare pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(ValueError, match=r"hostile\.pth was not read, because it holds more than tensors"):
        load_original_checkpoint(path)
    assert not marker.exists()
    if form == "bare pickle":  # it would have
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert marker.exists()


def test_a_broken_file_is_named(tmp_path):
    state, _, _, _ = load_reference("pretrain_alpha0.4")
    torch.save(state, tmp_path / "whole.pth")
    torch.save(state, tmp_path / "whole.pt", _use_new_zipfile_serialization=False)
    save_file({"temp": torch.ones(100)}, tmp_path / "whole.safetensors")
    for name in ("whole.pth", "whole.pt", "whole.safetensors"):
        content = (tmp_path / name).read_bytes()
        for part in (0, 1, 10, len(content) // 2, len(content) - 1):
            broken = tmp_path / f"broken{Path(name).suffix}"
            broken.write_bytes(content[:part])
            with pytest.raises(ValueError, match=re.escape(str(broken))):
                load_original_checkpoint(broken)
    with zipfile.ZipFile(tmp_path / "other.pth", "w") as archive:
        archive.writestr("readme.txt", "no checkpoint")
    with pytest.raises(ValueError, match=r"other\.pth"):
        load_original_checkpoint(tmp_path / "other.pth")


@pytest.mark.parametrize("content", [b"hello\n", b"", b"PK\x03\x04xx", bytes(range(256)) * 8])
def test_what_is_no_checkpoint_is_said_without_unsafe_advice(content, tmp_path):
    path = tmp_path / "notes.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"notes\.pth is no torch checkpoint, or not a whole one") as raised:
        load_original_checkpoint(path)
    assert "weights_only" not in str(raised.value)
    with pytest.raises(ValueError, match="is a folder; name a file in it"):
        load_original_checkpoint(tmp_path)


def test_only_one_place_reads_pickled_tensors_and_it_is_strict():
    root = Path(__file__).parent.parent
    calls = {}
    for folder in ("albef_hf", "ssl_methods", "scripts"):
        for path in (root / folder).rglob("*.py"):
            for line in path.read_text(encoding="utf-8").splitlines():
                if re.search(r"torch\.load\(|pickle\.loads?\(", line):
                    calls.setdefault(path.relative_to(root).as_posix(), []).append(line.strip())
    assert list(calls) == ["albef_hf/convert/files.py"]
    assert calls["albef_hf/convert/files.py"] == ['return torch.load(path, map_location="cpu", weights_only=True)']
