"""The code examples of model cards."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

# When a card is published, this line names the repository instead of the folder.
NAME_LINE = re.compile(r'^name = ".*"  # this folder, or its id on the Hub$', re.MULTILINE)
_PICTURE = 'picture = Image.new("RGB", (256, 256), "red")  # or Image.open("your_picture.jpg")'


def _name_line(name: str) -> str:
    return f"name = {json.dumps(name)}  # this folder, or its id on the Hub"


def task_usage(name: str, imports: str, usage: Sequence[str]) -> str:
    """The example of a fine-tuned model. imports: of albef_hf; usage: the lines after `name` and `picture`."""
    lines = ["import torch", "from PIL import Image", f"from albef_hf import {imports}", "", _name_line(name)]
    return "\n".join([*lines, _PICTURE, *usage])


def albef_usage(name: str, carries_code: bool) -> str:
    """The example of a pre-trained ALBEF. carries_code: the model folder holds the code of its classes."""
    trust = ", trust_remote_code=True" if carries_code else ""
    lines = ["import torch", "from PIL import Image", "from transformers import AutoModel, AutoProcessor", ""]
    if not carries_code:
        lines.insert(2, "import albef_hf  # registers the classes")
    lines += [
        _name_line(name),
        f"model = AutoModel.from_pretrained(name{trust})",
        f"processor = AutoProcessor.from_pretrained(name{trust})",
        "",
        _PICTURE,
        'captions = ["a red square", "a green tree"]',
        'inputs = processor(images=picture, text=captions, return_tensors="pt", padding=True)',
        "with torch.no_grad():",
        "    print(model(**inputs).logits_per_image.softmax(-1))",
    ]
    return "\n".join(lines)


def backbone_usage(name: str, config: Mapping[str, Any]) -> str:
    """The example of the backbone of an image-only method. config: the model's config.json."""
    channels, size = config.get("num_channels", 3), config.get("image_size", 224)
    if channels == 3:
        lines = [
            "from PIL import Image",
            "from transformers import pipeline",
            "",
            _name_line(name),
            'extract = pipeline("image-feature-extraction", model=name)',
            'picture = Image.new("RGB", (256, 256), "red")  # or the path of a picture',
            "print(extract(picture, return_tensors=True).shape)",
        ]
    else:  # the pipeline would make every picture RGB
        lines = [
            "import torch",
            "from transformers import AutoModel",
            "",
            _name_line(name),
            "model = AutoModel.from_pretrained(name)",
            f"print(model(torch.zeros(1, {channels}, {size}, {size})).last_hidden_state.shape)",
        ]
    return "\n".join(lines)
