"""The compiled loop over frames is there where it is of use, and nowhere missed: tests/test_inputs.py says what it computes."""

import subprocess
import sys

PROGRAM = """
import sys
{before}
import torch
from impala.networks.inputs import Inputs
from tests.network_cases import entry, make_spec
inputs = Inputs(make_spec(image=entry("uint8", 2, 3)), frame_stack=1, normalise=False)
image = torch.full((1, 1, 2, 3), 51, dtype=torch.uint8)
for number in range(2):
    with torch.inference_mode(number == 0):
        seen = inputs.prepare({{"image": image}})["image"]
    print(sys.modules.get("numba") is not None, round(float(seen.mean()), 6), flush=True)
"""


def _run(before: str) -> str:
    program = [sys.executable, "-W", "error", "-c", PROGRAM.format(before=before)]
    return subprocess.run(program, stdout=subprocess.PIPE, check=True, text=True).stdout


def test_numba_is_imported_where_gradients_are_computed_and_not_to_act() -> None:
    assert _run("") == "False 0.2\nTrue 0.2\n"


def test_without_numba_torch_prepares_frames() -> None:
    assert _run('sys.modules["numba"] = None') == "False 0.2\nFalse 0.2\n"
