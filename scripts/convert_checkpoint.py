"""Convert published ALBEF weights to a model folder, and back:

python scripts/convert_checkpoint.py ALBEF.pth runs/albef_14m --verify
python scripts/convert_checkpoint.py mscoco.pth runs/albef_coco
python scripts/convert_checkpoint.py runs/albef_coco/ albef_coco.pth --export

The task is read from the names of the weights, and sizes from their shapes. docs/checkpoints.md lists the files.
"""

import sys

sys.path.sort(key=lambda folder: folder.endswith("scripts"))  # last: `import evaluate` means the library

import argparse
from pathlib import Path
from typing import Any

CONVERTING = ("task", "vision_heads", "text_heads", "image_size", "ignore", "tokenizer", "add_sep_token")


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help=".pth, .pt or .safetensors file; with --export a model folder")
    parser.add_argument("target", type=Path, help="folder to write; with --export a .pth or .safetensors file")
    parser.add_argument("--export", action="store_true", help="convert a model folder to published names")
    parser.add_argument("--task", help="task of the weights, where their names do not show it, e.g. visual_entailment")
    parser.add_argument(
        "--vision_heads", type=int, help="attention heads of the image encoder; width / 64 where left out"
    )
    parser.add_argument(
        "--text_heads", type=int, help="attention heads of the text encoder; width / 64 where left out"
    )
    parser.add_argument(
        "--image_size", type=int, help="height and width of pictures, pixels; resizes the position table"
    )
    parser.add_argument("--ignore", nargs="*", default=[], metavar="PREFIX", help="published names to leave out")
    parser.add_argument("--without_momentum", action="store_true", help="leave out momentum copies and queues")
    parser.add_argument(
        "--tokenizer", help="folder, Hub id, or wordpiece; where left out, wordpiece for BERT's vocabulary"
    )
    parser.add_argument("--add_sep_token", action="store_true", help="texts end with [SEP], as in LAVIS")
    parser.add_argument(
        "--verify",
        nargs="?",
        const="",
        metavar="FILE",
        help="compare outputs with those in FILE; without FILE, show outputs for a fixed input",
    )
    return parser.parse_args(argv)


def convert(arguments: argparse.Namespace) -> None:
    from albef_hf import AlbefProcessor
    from albef_hf.convert.albef import OPTIONS, convert_checkpoint
    from albef_hf.convert.files import check_target
    from albef_hf.convert.verification import compare, describe, fixed_inputs, outputs
    from albef_hf.training.initialization import load_tokenizer

    check_target(arguments.target)
    options = {name: getattr(arguments, name) for name in OPTIONS if getattr(arguments, name) is not None}
    model, report = convert_checkpoint(arguments.source, task=arguments.task, ignore=arguments.ignore, **options)
    print(report)
    if arguments.verify:
        for name, difference in compare(model, arguments.verify).items():
            print(f"verified: {name} differs by {difference:.1e} of its greatest value")
    has_copies = any(name.startswith("momentum_copy.") for names in report.matched.values() for name in names)
    keep: dict[str, Any] = {"save_momentum": True} if has_copies and not arguments.without_momentum else {}
    text: Any = model.config.text_config
    tokenizer = arguments.tokenizer
    if tokenizer is None and text.vocab_size == 30522:
        tokenizer = "wordpiece"
    processor = None
    if tokenizer is not None:
        parts = load_tokenizer(tokenizer), model.config.vision_config.image_size
        processor = AlbefProcessor.from_parts(*parts, add_sep_token=arguments.add_sep_token)
        processor.check_text_model(text)
    model.save_pretrained(arguments.target, **keep)
    if processor is None:
        print("no processor was saved: name its vocabulary with --tokenizer")
    else:
        processor.save_pretrained(arguments.target)
    if arguments.verify == "":
        inputs = fixed_inputs(model)
        values = outputs(model, inputs)
        again = outputs(type(model).from_pretrained(arguments.target), inputs)
        changed = [name for name in values if not values[name].equal(again[name])]
        if changed:
            raise ValueError(
                f"{arguments.target} does not compute what the converted model does: {', '.join(changed)}"
            )
        print(f"outputs on a fixed input, of the saved folder too:\n{describe(values)}")
    print(f"{type(model).__name__}: {arguments.target}")


def export(arguments: argparse.Namespace) -> None:
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig

    from albef_hf.convert.albef import MODELS, export_original_checkpoint, model_class

    used = [name for name in CONVERTING if getattr(arguments, name)]
    if used:
        raise ValueError(f"--{used[0]} is for converting, and does nothing with --export: leave it out")
    if arguments.target.suffix not in (".pth", ".pt", ".safetensors"):
        raise ValueError(f"{arguments.target}: with --export name a file that ends in .pth, .pt or .safetensors")
    if arguments.target.exists():
        raise ValueError(f"{arguments.target} exists already: remove it, or name another file")
    if not (arguments.source / "config.json").is_file():
        raise ValueError(f"{arguments.source} is no model folder: it has no config.json")
    config = AutoConfig.from_pretrained(arguments.source, trust_remote_code=False)
    tasks = {name: task for task, (_, name) in MODELS.items()}
    name = next(iter(config.architectures or ()), None)
    if name not in tasks:
        raise ValueError(f"{arguments.source} holds {name}, which has no published layout; {', '.join(tasks)} have")
    model = model_class(tasks[name]).from_pretrained(arguments.source)
    state = export_original_checkpoint(model, momentum=not arguments.without_momentum)
    arguments.target.parent.mkdir(parents=True, exist_ok=True)
    if arguments.target.suffix == ".safetensors":  # where a tensor cannot have two names
        save_file({key: tensor.clone().contiguous() for key, tensor in state.items()}, arguments.target)
    else:
        torch.save({"model": state}, arguments.target)
    print(f"{tasks[name]}: {len(state)} names written to {arguments.target}")


def main() -> None:
    arguments = parse(sys.argv[1:])
    try:
        (export if arguments.export else convert)(arguments)
    except ValueError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
