"""Fine-tune on image-text retrieval:

accelerate launch scripts/finetune_retrieval.py configs/emoji_retrieval.yaml [--key value ...]
"""

from albef_hf.training.arguments import parse_arguments
from albef_hf.training.task_arguments import TASK_GROUPS


def main() -> None:
    *groups, task = parse_arguments(groups=TASK_GROUPS)
    from albef_hf.training.launch import launch
    from albef_hf.training.task_run import TaskRun, task_kind

    task_kind(task.task, ("retrieval", "grounding"))
    launch(TaskRun, *groups, task, name=task.task)


if __name__ == "__main__":
    main()
