"""Build the answer list of question answering, a JSON list of the most frequent answers of training data:

python scripts/build_answer_list.py vqa_train.json vqa_val.json --minimum 9 --output answer_list.json
python scripts/build_answer_list.py OWNER/NAME --columns answers=multiple_choice_answer --most 3128 --output list.json

The published list has 3,128 answers. It is not part of this package, and how it was made is not published.
"""

import sys

sys.path.sort(key=lambda folder: folder.endswith("scripts"))  # last: `import evaluate` means the library

import argparse
import json
from pathlib import Path


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", nargs="+", help="JSON lists, Hub ids, or anything else that `dataset` takes")
    parser.add_argument("--split", default="train", help="split of the data sets")
    parser.add_argument(
        "--columns",
        nargs="*",
        default=[],
        metavar="OURS=THEIRS",
        help="names of the columns image, question and answers in the data sets",
    )
    parser.add_argument("--most", type=int, help="keep at most this many answers; all where left out")
    parser.add_argument("--minimum", type=int, default=1, help="leave out answers that were given fewer times")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    from albef_hf.tasks.answers import answer_coverage, answers_of, most_frequent_answers
    from albef_hf.tasks.question_answering import QuestionAnswering

    for pair in arguments.columns:
        if "=" not in pair:
            raise ValueError(f"--columns {pair}: write it as OURS=THEIRS, such as answers=multiple_choice_answer")
    for name in ("most", "minimum"):
        if (value := getattr(arguments, name)) is not None and value < 1:
            raise ValueError(f"--{name} {value}: at least 1 is needed")
    if arguments.output.is_dir():
        raise ValueError(f"--output {arguments.output} is a folder: name a file")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    columns = dict(pair.split("=", 1) for pair in arguments.columns)
    rows = []
    for dataset in arguments.datasets:
        table = QuestionAnswering.load(dataset, columns=columns, split=arguments.split)
        if "answers" not in table.column_names:
            raise ValueError(f"{dataset} has no answers: name their column by --columns answers=NAME")
        rows += [{"answers": answers_of(row)} for row in table.select_columns(["answers"])]
    answers = most_frequent_answers(rows, arguments.most, arguments.minimum)
    if not answers:
        raise ValueError(f"no answer was given {arguments.minimum} times: lower --minimum")
    arguments.output.write_text(json.dumps(answers, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
    print(
        f"{arguments.output}: {len(answers):,} answers, which cover {answer_coverage(rows, answers):.2%} of questions"
    )


if __name__ == "__main__":
    main()
