"""How this process uses its machine's processor: threads of torch, memory that is kept, and time spent waiting for a core."""

import ctypes
import sys
from pathlib import Path

import torch

# Of glibc's <malloc.h>, and what mallopt makes of them.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_LARGEST_MMAP_THRESHOLD = 32 * 2**20  # glibc takes no more
_KEPT_BYTES = 2**30
_GROWTH_BYTES = 64 * 2**20

_SCHEDULE = Path("/proc/thread-self/schedstat")


def prepare_processor(threads: int) -> None:
    """Has torch compute with so many threads, and glibc keep freed memory for the next tensor.

    Left to itself, glibc asks the system for every large tensor anew and gives it back at once; each of its pages is then cleared
    by the system and faults on its first use, which at batches of a few megabytes costs a learner a fifth of its time. The memory
    that a process holds is then that of its busiest moment. Elsewhere than on glibc memory is left as it is.
    """
    torch.set_num_threads(threads)
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
        mallopt(_M_TOP_PAD, _GROWTH_BYTES)


def starved_seconds() -> float:
    """Returns how long the calling thread has been ready to run so far and had no core; 0 where the system does not say."""
    try:
        # Nanoseconds: running, waiting for a core; then how often it ran.
        return int(_SCHEDULE.read_text().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):  # not Linux, or a kernel without it
        return 0.0
