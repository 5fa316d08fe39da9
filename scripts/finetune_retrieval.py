"""`finetune.py` for the two tasks that train a retrieval model, retrieval and grounding:

accelerate launch scripts/finetune_retrieval.py configs/emoji_retrieval.yaml [--key value ...]
"""

import sys

sys.path.sort(key=lambda folder: folder.endswith("scripts"))  # last: `import evaluate` means the library

from albef_hf.training.arguments import parse_arguments
from albef_hf.training.task_arguments import TASK_GROUPS


def main() -> None:
    groups = parse_arguments(groups=TASK_GROUPS)
    from albef_hf.tasks import Grounding, Retrieval
    from albef_hf.training.task_run import fine_tune

    fine_tune(*groups, tasks=(Retrieval, Grounding))


if __name__ == "__main__":
    main()
