"""Fine-tune on question answering, visual reasoning, entailment, text assignment or grounding, as `task` says:

accelerate launch scripts/finetune.py configs/emoji_vqa.yaml [--key value ...]
"""

from albef_hf.training.arguments import parse_arguments
from albef_hf.training.task_arguments import TASK_GROUPS


def main() -> None:
    *groups, task = parse_arguments(groups=TASK_GROUPS)
    from albef_hf.training.launch import launch
    from albef_hf.training.task_run import TaskRun, task_kind

    task_kind(task.task)
    launch(TaskRun, *groups, task, name=task.task)


if __name__ == "__main__":
    main()
