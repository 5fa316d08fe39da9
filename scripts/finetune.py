"""Fine-tune on the downstream task that `task` in the configuration names:

accelerate launch scripts/finetune.py configs/emoji_vqa.yaml [--key value ...]
"""

import sys

sys.path.sort(key=lambda folder: folder.endswith("scripts"))  # last: `import evaluate` means the library

from albef_hf.training.arguments import parse_arguments
from albef_hf.training.task_arguments import TASK_GROUPS


def main() -> None:
    groups = parse_arguments(groups=TASK_GROUPS)
    from albef_hf.training.task_run import fine_tune

    fine_tune(*groups)


if __name__ == "__main__":
    main()
