"""Convert published image-only weights to a folder that `AutoModel` loads:

python scripts/convert_image_checkpoint.py moco_v2_800ep_pretrain.pth.tar runs/moco_v2/model
python scripts/convert_image_checkpoint.py pretrain_res50x1.pkl runs/byol/model
python scripts/convert_image_checkpoint.py deit_base_patch16_224-b5f2ef4d.pth runs/deit/model --image_size 256
"""

import sys

sys.path.sort(key=lambda folder: folder.endswith("scripts"))  # last: `import evaluate` means the library

import argparse
from pathlib import Path


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="MoCo, Barlow Twins, BYOL (.pkl), DeiT or timm ViT file")
    parser.add_argument("target", type=Path, help="folder to write")
    parser.add_argument("--heads", type=int, help="attention heads of a DeiT or timm ViT; width / 64 where left out")
    parser.add_argument(
        "--image_size",
        type=int,
        help="for a DeiT or timm ViT: height and width of pictures, pixels; resizes the position table",
    )
    return parser.parse_args(argv)


def main() -> None:
    arguments = parse(sys.argv[1:])
    from albef_hf.convert.files import check_target
    from ssl_methods.convert import load_image_checkpoint, save_image_folder

    try:
        check_target(arguments.target)
        model, report = load_image_checkpoint(arguments.source, arguments.heads, arguments.image_size)
    except ValueError as error:
        sys.exit(str(error))
    print(report)
    save_image_folder(model, arguments.target)
    print(f"{type(model).__name__}: {arguments.target}")


if __name__ == "__main__":
    main()
