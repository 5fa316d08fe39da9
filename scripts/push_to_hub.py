"""Upload a trained model with its processor, code and card, as a private repository:

python scripts/push_to_hub.py runs/quickstart --repo_id NAME/albef-emoji --dry_run
python scripts/push_to_hub.py runs/quickstart --repo_id NAME/albef-emoji

The folder is a run folder or a model folder. --dry_run writes the folder that would be uploaded, and uploads nothing.
"""

import sys

sys.path.sort(key=lambda folder: folder.endswith("scripts"))  # last: `import evaluate` means the library

import argparse
import tempfile
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="run folder or model folder")
    parser.add_argument("--repo_id", required=True, help="OWNER/NAME on the Hub")
    parser.add_argument("--public", action="store_true", help="make the repository public; private where left out")
    parser.add_argument(
        "--dry_run",
        nargs="?",
        const=Path("upload"),
        type=Path,
        metavar="FOLDER",
        help="upload nothing, but write FOLDER (default: upload)",
    )
    options = parser.parse_args()

    from albef_hf.reporting.publishing import stage, upload

    with tempfile.TemporaryDirectory() as scratch:
        target = options.dry_run or Path(scratch) / "upload"
        for name in stage(options.folder, target, options.repo_id):
            print(f"{(target / name).stat().st_size:>14,}  {name}")
        if options.dry_run:
            print(f"written to {target}; nothing was uploaded")
            return
        commit = upload(target, options.repo_id, private=not options.public)
    print(f"{commit.commit_url}\npin it: revision={commit.oid!r}")


if __name__ == "__main__":
    main()
