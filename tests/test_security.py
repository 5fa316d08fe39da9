"""Nothing that others made is run: weights, configurations, archives, pickles. Secrets are not written down."""

import ast
import builtins
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers import tiny_config, tiny_model
from transformers import BertConfig, BertForMaskedLM, ViTConfig, ViTModel

from albef_hf import AlbefConfig, AlbefForPreTraining
from albef_hf.data.arguments import DataArguments
from albef_hf.training.arguments import ModelArguments, parse_arguments, resolved
from albef_hf.training.initialization import build_albef, build_vision_backbone
from albef_hf.training.redaction import redact
from ssl_methods.haiku_pickle import read_haiku_pickle

ROOT = Path(__file__).parent.parent
VIT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 16}


# -- code -------------------------------------------------------------------------------------------------------------


def foreign_folder(folder: Path, marker: Path, model_type: str) -> Path:
    """A model folder whose own code writes a file when it is imported."""
    folder.mkdir()
    (folder / "evil.py").write_text(
        f"from pathlib import Path\nPath({str(marker)!r}).touch()\n"
        "from transformers import PretrainedConfig\nclass C(PretrainedConfig): model_type = 'evil'\n"
    )
    names = ("AutoConfig", "AutoModel", "AutoModelForMaskedLM", "AutoTokenizer")
    auto_map = dict.fromkeys(names, "evil.C")
    (folder / "config.json").write_text(json.dumps({"model_type": model_type, "auto_map": auto_map, **VIT}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["evil.C", None]}}))
    return folder


@pytest.mark.parametrize("part", ["vision_model", "text_model", "tokenizer"])
@pytest.mark.parametrize("model_type", ["evil", "vit", "bert"])
def test_code_of_a_folder_is_never_run(tmp_path, monkeypatch, part, model_type):
    monkeypatch.setattr(builtins, "input", lambda *_: "y")  # what transformers would ask
    folder = foreign_folder(tmp_path / "foreign", tmp_path / "ran", model_type)
    with pytest.raises((ValueError, OSError)):
        build_albef(ModelArguments(**{part: str(folder)}, image_size=32))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("part", ["vision_model", "text_model"])
def test_pickled_weights_are_not_read(tmp_path, part):
    bert = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    model = ViTModel(ViTConfig(**VIT)) if part == "vision_model" else BertForMaskedLM(BertConfig(**bert))
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="only safetensors are, since other files can run code"):
        build_albef(ModelArguments(**{part: str(tmp_path)}, tokenizer="wordpiece", image_size=32))


def test_an_attention_that_would_be_downloaded_is_refused(tmp_path):
    tiny_model().save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    saved = json.loads(path.read_text())
    for part in ("", "text_config", "vision_config"):
        for key in ("attn_implementation", "_attn_implementation", "_attn_implementation_internal"):
            changed = json.loads(json.dumps(saved))
            (changed[part] if part else changed)[key] = "kernels-community/evil"
            path.write_text(json.dumps(changed))
            for load in (AlbefForPreTraining.from_pretrained, AlbefConfig.from_pretrained):
                with pytest.raises(
                    ValueError, match="asks for the attention 'kernels-community/evil', which is none of"
                ):
                    load(tmp_path / "model")
    path.write_text(json.dumps({**saved, "attn_implementation": {"": "sdpa", "text_config": "eager"}}))
    assert AlbefConfig.from_pretrained(tmp_path / "model").text_config._attn_implementation == "eager"
    ViTModel(ViTConfig(**VIT)).save_pretrained(tmp_path / "vit")
    path = tmp_path / "vit" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "attn_implementation": "kernels-community/evil"}))
    with pytest.raises(ValueError, match="vit asks for the attention 'kernels-community/evil'"):
        build_vision_backbone(ModelArguments(vision_model=str(tmp_path / "vit"), image_size=32))


def test_attention_of_ones_own_choice_is_not_looked_at():
    assert tiny_config()._attn_implementation is None
    assert (
        AlbefForPreTraining._from_config(tiny_config(), attn_implementation="eager").config._attn_implementation
        == "eager"
    )


def test_what_a_pickle_names_often_is_made_once(tmp_path):
    array = np.arange(3, dtype=np.float32)
    tree = {"w": array}
    for _ in range(60):  # 2 ** 60 leaves, in about a kilobyte
        tree = {"a": tree, "b": tree}
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(tree, protocol=4))
    assert (tmp_path / "x.pkl").stat().st_size < 3000
    read = read_haiku_pickle(tmp_path / "x.pkl")
    for _ in range(60):
        assert read["a"] is read["b"]
        read = read["a"]
    assert np.array_equal(read["w"], array)


# -- secrets ----------------------------------------------------------------------------------------------------------

SECRETS = {
    "token": "my-own-token",
    "storage_options": {"key": "zqkey", "secret": "zqsecret", "client_kwargs": {"aws_secret_access_key": "zqaws"}},
    "data_files": "https://me:zqpassword@example.com/x.parquet",
    "other": "hf_" + "Zq12" * 8,
}


def test_secrets_in_options_are_not_written_down(tmp_path):
    data = DataArguments(
        dataset_options=SECRETS,
        evaluation_dataset_options={"api_key": "zqapi"},
        mixture=[{"dataset": "a/b", "options": {"auth_token": "zqauth"}}],
    )
    text = resolved(ModelArguments(tokenizer="a/b"), data)
    assert "zq" not in text.lower() and "my-own-token" not in text
    written = yaml.safe_load(text)
    assert (
        written["tokenizer"] == "a/b" and written["max_caption_tokens"] == 25
    )  # no secrets, though "token" is in them
    assert written["dataset_options"]["storage_options"]["key"] == "REDACTED"
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(
        ValueError, match="holds REDACTED in place of a secret that was not written down: give it anew"
    ):
        parse_arguments([str(tmp_path / "run.yaml")])
    assert redact({"designs": ["google"], "key_dim": "x", "monkey": "y", "token": ""}) == {
        "designs": ["google"],
        "key_dim": "x",
        "monkey": "y",
        "token": "",
    }


# -- the code itself --------------------------------------------------------------------------------------------------

FORBIDDEN_IMPORTS = {"dill", "cloudpickle", "joblib", "shelve", "marshal"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_ATTRIBUTES = {
    ("pickle", "load"), ("pickle", "loads"), ("yaml", "load"), ("yaml", "unsafe_load"), ("yaml", "full_load"),
    ("os", "system"), ("os", "popen"), ("torch", "hub"), ("pandas", "read_pickle"),
}  # fmt: skip
# Auto classes read what others made, so that each call says what it may do.
GUARDED = ("AutoConfig", "AutoModel", "AutoTokenizer", "AutoProcessor", "AutoModelForMaskedLM", "AutoImageProcessor")


def faults(source: str) -> list[str]:
    """What a source file does that may run code of others."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [str(node.module)]
            found += [f"line {node.lineno}: import of {n}" for n in names if n.split(".")[0] in FORBIDDEN_IMPORTS]
        if isinstance(node, ast.ClassDef):
            found += [
                f"line {node.lineno}: {node.name}" for base in node.bases if ast.unparse(base).endswith("Unpickler")
            ]
        if not isinstance(node, ast.Call):
            continue
        call, options = ast.unparse(node.func), {option.arg: ast.unparse(option.value) for option in node.keywords}
        splat = [ast.unparse(option.value) for option in node.keywords if option.arg is None]
        parts = call.split(".")
        wrong = call in FORBIDDEN_CALLS or tuple(parts[-2:]) in FORBIDDEN_ATTRIBUTES
        wrong |= call == "torch.load" and options.get("weights_only") != "True"
        wrong |= options.get("allow_pickle", "False") != "False" or options.get("shell", "False") != "False"
        wrong |= options.get("trust_remote_code", "False") != "False"
        if parts[-1] in ("from_pretrained", "from_config") and parts[0] in GUARDED:
            wrong |= "trust_remote_code" not in options and not {"NO_CODE", "WEIGHTS_ONLY"} & set(splat)
        if wrong:
            found.append(f"line {node.lineno}: {ast.unparse(node)[:100]}")
    return found


def test_the_code_calls_nothing_that_unpickles_or_evaluates():
    files = [
        path for folder in ("albef_hf", "ssl_methods", "scripts") for path in sorted((ROOT / folder).rglob("*.py"))
    ]
    assert len(files) > 100
    allowed = {"haiku_pickle.py": ["_Reader"]}  # its `find_class` imports nothing
    wrong = []
    for path in files:
        for fault in faults(path.read_text(encoding="utf-8")):
            if not any(fault.endswith(f": {name}") for name in allowed.get(path.name, ())):
                wrong.append(f"{path.relative_to(ROOT)}, {fault}")
    assert wrong == []


@pytest.mark.parametrize(
    "line",
    [
        "import dill", "from joblib import load", "pickle.load(f)", "pickle.loads(b)", "torch.load(p)",
        "torch.load(p, weights_only=False)", "np.load(p, allow_pickle=True)", "yaml.load(t)", "eval(t)",
        "os.system(t)", "subprocess.run(t, shell=True)", "AutoModel.from_pretrained(n)", "AutoModel.from_config(c)",
        "AutoConfig.from_pretrained(n, **options)", "AutoModel.from_pretrained(n, trust_remote_code=True)",
        "class R(pickle.Unpickler): ...",
    ],
)  # fmt: skip
def test_the_search_for_such_calls_finds_them(line):
    assert len(faults(line)) == 1
