"""The crash test on a small recipe, once as it is and once with each planted fault: FOLDER -> FOLDER/NAME.txt."""

import contextlib
import sys
from pathlib import Path
from unittest.mock import patch

import torch

from albef_hf.crashtest.command import main
from albef_hf.training import run_state
from albef_hf.training.run_state import RunState

RECIPE = Path(__file__).parent / "crashtest_recipe.py"


def without_pointer():
    """The queue goes on from its first place."""
    load = run_state.load_checkpoint

    def forgetful(path, method, *others):
        progress = load(path, method, *others)
        method.queue.cursor.zero_()
        return progress

    return patch.object(run_state, "load_checkpoint", forgetful)


def without_seeds():
    """A run that goes on draws the random numbers of dropout from wherever the generator is."""
    load = RunState.load

    def forgetful(*arguments):
        load(*arguments)
        torch.manual_seed = lambda seed: None

    return patch.object(RunState, "load", forgetful)


FAULTS = {"none": contextlib.nullcontext, "pointer": without_pointer, "seeds": without_seeds}
SHORT = ["--kills=6", "--calls=6", "--writes=3", "--signals=4", "--workers=0", "--each=4"]

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    recipe = [str(RECIPE), "--batch_size=4", "--warmup_steps=2", f"--output_dir={folder / 'mine'}"]
    for name, fault in FAULTS.items():
        with (folder / f"{name}.txt").open("w") as handle, contextlib.redirect_stdout(handle), fault():
            only = [] if name == "none" else ["--only=reload,kills"]
            print(f"exit {main([f'--folder={folder / name}', *SHORT, *only, *recipe])}")
