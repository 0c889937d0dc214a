"""The processor is used as asked: memory stays with the process, and torch computes with so many threads."""

import subprocess
import sys

import pytest

# Eight megabytes at a time, as a batch's activations are: left to glibc each is asked for, cleared and given back anew.
_COUNT_FAULTS = """
import resource
import torch
from impala.processor import prepare_processor
prepare_processor({threads})
def work():
    for _ in range(20):
        torch.ones(2_000_000)
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, torch.get_num_threads())
"""


def _run(threads: int) -> list[str]:
    program = [sys.executable, "-c", _COUNT_FAULTS.format(threads=threads)]
    return subprocess.run(program, stdout=subprocess.PIPE, check=True, text=True).stdout.split()


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's memory")
def test_freed_memory_is_used_again_without_a_page_fault() -> None:
    faults = int(_run(1)[0])
    assert faults < 2000  # twenty times two thousand pages


def test_torch_computes_with_as_many_threads_as_asked_for() -> None:
    assert _run(2)[1] == "2"
