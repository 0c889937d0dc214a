"""The compiled loop of V-trace is there where it is of use, and nowhere missed: tests/test_vtrace.py says what it computes."""

import subprocess
import sys


def _run(program: str) -> str:
    return subprocess.run([sys.executable, "-W", "error", "-c", program], stdout=subprocess.PIPE, check=True, text=True).stdout


def test_without_numba_torch_computes_it() -> None:
    program = """
import sys
sys.modules["numba"] = None
import torch
from impala.vtrace import prepare_vtrace, vtrace
prepare_vtrace(torch.device("cpu"))
one = torch.ones(2, 1)
print(vtrace(log_rhos=0 * one, discounts=one, rewards=one, values=one, bootstrap_value=one[0]).vs.tolist())
"""
    assert _run(program) == "[[3.0], [2.0]]\n"


def test_numba_is_imported_where_the_cpu_computes_v_trace_and_not_before() -> None:
    program = """
import sys
import torch
from impala.vtrace import prepare_vtrace
print("numba" in sys.modules)
prepare_vtrace(torch.device("meta"))
print("numba" in sys.modules)
prepare_vtrace(torch.device("cpu"))
print("numba" in sys.modules, sys.modules["impala.vtrace_loop"]._compiled.cache_info().currsize)
"""
    assert _run(program) == "False\nFalse\nTrue 1\n"
