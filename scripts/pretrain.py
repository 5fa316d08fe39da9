"""Pre-train:  accelerate launch scripts/pretrain.py configs/quickstart.yaml [--key value ...]"""

import sys

sys.path.sort(key=lambda folder: folder.endswith("scripts"))  # last: `import evaluate` means the library

from albef_hf.training.arguments import parse_arguments


def main() -> None:
    model_arguments, data_arguments, arguments = parse_arguments()
    from albef_hf.training.albef_run import AlbefRun
    from albef_hf.training.launch import launch
    from ssl_methods import METHODS
    from ssl_methods.run import ImageRun

    runs = {"albef": AlbefRun} | dict.fromkeys(METHODS, ImageRun)
    if model_arguments.method not in runs:
        raise ValueError(f"method must be one of {', '.join(runs)}, not {model_arguments.method!r}")
    name = model_arguments.method
    launch(runs[name], model_arguments, data_arguments, arguments, name=name)


if __name__ == "__main__":
    main()
