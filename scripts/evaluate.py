"""Measure a saved model of a task on the tests of a configuration:

accelerate launch scripts/evaluate.py configs/emoji_vqa.yaml --model runs/emoji_vqa/model --output_dir runs/again
accelerate launch scripts/evaluate.py configs/retrieval_coco.yaml --model OWNER/NAME --protocol coco-fine-tuned
"""

import sys

sys.path.sort(key=lambda folder: folder.endswith("scripts"))  # last: `import evaluate` means the library

import argparse

from albef_hf.training.arguments import parse_arguments
from albef_hf.training.task_arguments import TASK_GROUPS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, add_help=False, allow_abbrev=False)
    parser.add_argument("--model", help="folder or Hub id of the model to measure")
    parser.add_argument("--protocol", help="protocol of a published retrieval result, see docs/downstream.md")
    options, rest = parser.parse_known_args()
    _, data_arguments, arguments, task_arguments = parse_arguments(rest, TASK_GROUPS, parser)
    if options.model is None:
        raise ValueError("say which model to measure: --model FOLDER")
    from albef_hf.training.task_run import evaluate_saved

    evaluate_saved(options.model, options.protocol, data_arguments, arguments, task_arguments)


if __name__ == "__main__":
    main()
