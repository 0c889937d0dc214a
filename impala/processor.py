"""How this process uses its machine's processor: threads of torch, and memory that is kept rather than given back."""

import ctypes
import sys

import torch

# Of glibc's <malloc.h>, and what mallopt makes of them.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_LARGEST_MMAP_THRESHOLD = 32 * 2**20  # glibc takes no more
_KEPT_BYTES = 2**30
_GROWTH_BYTES = 64 * 2**20


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
