"""What a process costs its machine, as Linux tells."""

import os
from pathlib import Path


def memory_megabytes(pid: int | None = None) -> float:
    """Returns resident memory, of this process where none is named."""
    for line in Path(f"/proc/{pid or os.getpid()}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return round(int(line.split()[1]) / 1024, 1)
    raise ProcessLookupError(f"process {pid} has ended")


def descriptors(pid: int) -> int:
    """Returns how many files and sockets are open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def threads(pid: int) -> int:
    """Returns how many threads run."""
    return len(list(Path(f"/proc/{pid}/task").iterdir()))
