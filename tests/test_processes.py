"""How many processes a run has, what starts them, and in which precision they compute."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser

from albef_hf.training import processes
from albef_hf.training.arguments import TrainingArguments
from albef_hf.training.processes import (
    check_launch,
    check_processes,
    idle_note,
    launch_arguments,
    settled_precision,
    start_processes,
)

ROOT = Path(__file__).parent.parent
SCALING = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
LAUNCHERS = ("ACCELERATE_", "SLURM_", "OMPI_", "PMI_", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_", "TORCHELASTIC_")


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    """No launcher has set anything, and there is no GPU."""
    for name in [name for name in os.environ if name.startswith(LAUNCHERS)]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(processes, "launcher", lambda: None)
    monkeypatch.setattr(processes, "default_config_file", "")


def with_gpus(monkeypatch, count: int) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


# -- as many processes as were asked for ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("/usr/bin/python3 /usr/bin/accelerate launch --cpu a.py", ["--cpu", "a.py"]),
        ("/usr/bin/accelerate launch a.py", ["a.py"]),
        ("python -m accelerate.commands.launch --cpu a.py", ["--cpu", "a.py"]),
        ("python /usr/bin/accelerate-launch a.py", ["a.py"]),
        ("python accelerate launch", []),
        ("python scripts/pretrain.py launch", None),
        ("/usr/bin/accelerate config launch", None),
        ("bash", None),
    ],
)
def test_accelerate_launch_is_known_however_it_is_called(command, arguments):
    assert launch_arguments(command.split()) == arguments


@pytest.mark.parametrize("flags", ["--cpu --num_processes 2", "--num_processes=2", "--num-processes 2"])
def test_accelerate_launch_that_starts_one_of_several_processes_is_refused(flags, monkeypatch):
    words = [*flags.split(), "scripts/pretrain.py", "--num_processes", "7"]
    monkeypatch.setattr(processes, "launcher", lambda: words)
    monkeypatch.setattr(sys, "argv", ["scripts/pretrain.py", "my recipe.yaml"])
    typed = re.escape("torchrun --standalone --nproc_per_node 2 scripts/pretrain.py 'my recipe.yaml'")
    with pytest.raises(ValueError, match=f"asked for 2 processes but started one.*here: 0.*{typed}"):
        check_processes(1)
    check_processes(2)


def test_accelerate_launch_of_several_processes_by_a_file_is_refused(monkeypatch, tmp_path):
    file = tmp_path / "launch.yaml"
    words = ["--config_file", str(file), "scripts/pretrain.py"]
    monkeypatch.setattr(processes, "launcher", lambda: words)
    text = (ROOT / "configs" / "accelerate" / "one_node.yaml").read_text(encoding="utf-8")
    file.write_text(text)
    with pytest.raises(ValueError, match="asked for 8 processes but started one"):
        check_processes(1)
    check_processes(8)
    file.write_text(text.replace("num_processes: 8", "num_processes: 1"))
    check_processes(1)
    monkeypatch.setattr(processes, "default_config_file", str(file))
    words[:] = ["scripts/pretrain.py"]
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    check_processes(1)
    file.write_text(text)
    with pytest.raises(ValueError, match="asked for 8 processes but started one"):
        check_processes(1)
    words[:] = ["--cpu", "scripts/pretrain.py"]  # the file does not count then
    check_processes(1)


@pytest.mark.parametrize(
    ("name", "variable"),
    [
        ("torchrun", "WORLD_SIZE"), ("MPI", "OMPI_COMM_WORLD_SIZE"), ("MPI", "PMI_SIZE"),
        ("srun", "SLURM_STEP_NUM_TASKS"),
    ],
)  # fmt: skip
def test_processes_that_know_nothing_of_each_other_are_refused(name, variable, monkeypatch):
    monkeypatch.setenv(variable, "4")
    with pytest.raises(ValueError, match=f"{name} started 4 processes, and each would train alone"):
        check_processes(1)
    check_processes(4)
    monkeypatch.setenv(variable, "1")
    check_processes(1)


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    check_launch()  # on a CPU there may be any number
    with_gpus(monkeypatch, 2)
    with pytest.raises(ValueError, match="4 processes were started on this machine, but it shows 2 GPUs"):
        check_launch()
    with_gpus(monkeypatch, 4)
    check_launch()


def test_a_run_says_that_gpus_are_idle(monkeypatch):
    assert idle_note() is None
    with_gpus(monkeypatch, 1)
    assert idle_note() is None
    for count in (2, 8):
        with_gpus(monkeypatch, count)
        assert f"one of {count} GPUs" in idle_note()


@pytest.mark.parametrize(
    ("variable", "name"),
    [("USE_FSDP", "FSDP"), ("USE_DEEPSPEED", "DeepSpeed"), ("USE_MEGATRON_LM", "Megatron-LM")],
)
def test_sharding_is_refused_by_name(variable, name, monkeypatch):
    monkeypatch.setenv(f"ACCELERATE_{variable}", "false")
    check_launch()
    monkeypatch.setenv(f"ACCELERATE_{variable}", "true")
    with pytest.raises(ValueError, match=f"set to use {name}, which these runs do not support.*--sharding fsdp2"):
        start_processes()


def test_ranks_meet_again_when_torchrun_restarts_them(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["--max_restarts", "1", str(ROOT / "tests" / "restarting_worker.py"), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"rank-0-restart-1", "rank-1-restart-1"}


# -- precision --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("configured", "launched", "gpu", "chosen", "said"),
    [
        (None, None, False, "no", ""),
        (None, "no", False, "no", ""),
        (None, "bf16", False, "bf16", ""),
        ("bf16", "no", False, "bf16", ""),
        ("bf16", "bf16", False, "bf16", ""),
        ("no", "bf16", False, "no", "mixed_precision is no, as configured; `accelerate launch` says bf16"),
        ("fp16", None, True, "fp16", ""),
        ("fp16", None, False, "no", "mixed_precision fp16 needs a GPU: this run computes in float32"),
        (None, "fp16", False, "no", "mixed_precision fp16 needs a GPU: this run computes in float32"),
    ],
)
def test_the_configured_precision_comes_before_that_of_accelerate_launch(
    configured, launched, gpu, chosen, said, monkeypatch
):
    if launched:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    if gpu:
        with_gpus(monkeypatch, 1)
    notes: list[str] = []
    assert settled_precision(TrainingArguments(mixed_precision=configured), notes.append) == chosen
    assert " ".join(notes).removeprefix("note: ") == said


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="mixed_precision must be one of no, bf16, fp16, not 'bfloat16'"):
        settled_precision(TrainingArguments(mixed_precision="bfloat16"))


# -- files and commands of docs/scaling.md ----------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "accelerate").glob("*.yaml")), ids=lambda path: path.name)
def test_accelerate_reads_its_configurations(path):
    config = load_config_from_file(str(path))
    assert set(yaml.safe_load(path.read_text(encoding="utf-8"))) <= set(vars(config))
    assert config.num_processes == {"one_gpu": 1, "one_node": 8, "many_nodes": 32}[path.stem]
    assert (config.distributed_type == "MULTI_GPU") == (config.num_processes > 1)


def test_every_command_of_the_page_is_one_that_its_launcher_understands():
    blocks = re.findall(r"```bash\n(.*?)```", SCALING, re.DOTALL)
    written = "\n".join([*re.findall(r"`((?:accelerate launch|torchrun) [^`]+py[^`]*)`", SCALING), *blocks])
    lines = [
        line for line in written.replace("\\\n", " ").splitlines() if re.search(r"accelerate launch|torchrun", line)
    ]
    assert len(lines) >= 4
    for line in lines:
        words = shlex.split(line.removeprefix("srun "))
        if words[0] == "accelerate":
            known = launch_command_parser().parse_args(words[2:])
        else:
            from torch.distributed.run import get_args_parser

            known = get_args_parser().parse_args([re.sub(r"\$\w+", "1", word) for word in words[1:]])
        assert (ROOT / known.training_script).is_file()
    for block in blocks:
        assert subprocess.run(["bash", "-n"], input=block, text=True, check=False).returncode == 0, block
