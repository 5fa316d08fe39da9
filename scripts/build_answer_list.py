"""The answers of a training set that a question answering model may give, most frequent first, as a JSON list:

python scripts/build_answer_list.py vqa_train.json vqa_val.json --minimum 9 --output answer_list.json
python scripts/build_answer_list.py OWNER/NAME --columns answers=multiple_choice_answer --most 3128 --output list.json

The published list is not shipped: it has 3,128 answers, and how they were chosen is not said.
"""

import argparse
import json
from pathlib import Path


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", nargs="+", help="JSON lists, Hub ids, or what else `dataset` of a config may be")
    parser.add_argument("--split", default="train")
    parser.add_argument("--columns", nargs="*", default=[], metavar="OURS=THEIRS", help="image, question, answers")
    parser.add_argument("--most", type=int, help="so many answers at most")
    parser.add_argument("--minimum", type=int, default=1, help="times an answer must have been given")
    parser.add_argument("--output", type=Path, required=True)
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    from albef_hf.tasks.question_answering import (
        QuestionAnswering,
        answer_coverage,
        answers_of,
        most_frequent_answers,
    )

    columns = dict(pair.split("=", 1) for pair in arguments.columns)
    rows = []
    for dataset in arguments.datasets:
        table = QuestionAnswering.load(dataset, columns=columns, split=arguments.split)
        if "answers" not in table.column_names:
            raise ValueError(f"{dataset} has no answers: say which column with --columns answers=NAME")
        rows += [{"answers": answers_of(row)} for row in table.select_columns(["answers"])]
    answers = most_frequent_answers(rows, arguments.most, arguments.minimum)
    if not answers:
        raise ValueError(f"no answer was given {arguments.minimum} times: lower --minimum")
    arguments.output.write_text(json.dumps(answers, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
    print(
        f"{arguments.output}: {len(answers):,} answers, which answer {answer_coverage(rows, answers):.2%} of questions"
    )


if __name__ == "__main__":
    main()
