"""What a benchmark ran on and what of, in words: every stored number names both."""

import os
import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

# What decides how fast small networks are, the best first.
_INSTRUCTIONS = {"amx_bf16": "AMX", "avx512_bf16": "AVX-512 with bfloat16", "avx512f": "AVX-512", "avx2": "AVX2", "asimd": "NEON"}
_BFLOAT16 = {"amx_bf16", "avx512_bf16", "bf16"}


def machine() -> str:
    """Returns processor, cores that this process may run on, and the versions that matter, in one line."""
    fields = _processor()
    flags = _flags(fields)
    processor = [fields.get("model name") or platform.processor() or "unnamed processor"]
    # Virtual machines name whole generations alike.
    processor += [f"family {fields['cpu family']}"] if "cpu family" in fields else []
    processor += [name for flag, name in _INSTRUCTIONS.items() if flag in flags][:1]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = f"Python {platform.python_version()}, torch {metadata.version('torch')}"
    return f"{platform.machine()}, {' '.join(processor)}, {cores} cores, {versions}"


def has_bfloat16() -> bool:
    """Whether the processor multiplies matrices of bfloat16, which without such instructions is slower than float32."""
    return not _BFLOAT16.isdisjoint(_flags(_processor()))


def commit() -> str:
    """Returns the commit that is checked out, abbreviated; nothing where there is none."""
    return subprocess.run(["git", "rev-parse", "--short", "HEAD"], stdout=subprocess.PIPE, text=True, check=False).stdout.strip()


def _processor() -> dict[str, str]:
    """Returns what Linux says of the first core; nothing elsewhere."""
    cpuinfo = Path("/proc/cpuinfo")
    return dict(_field(line) for line in reversed(cpuinfo.read_text().splitlines() if cpuinfo.exists() else []) if ":" in line)


def _flags(fields: Mapping[str, str]) -> list[str]:
    return f"{fields.get('flags', '')} {fields.get('Features', '')}".split()


def _field(line: str) -> tuple[str, str]:
    name, _, value = line.partition(":")
    return name.strip(), value.strip()
