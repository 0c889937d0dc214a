"""Checkpoints: everything needed to go on, in safetensors and JSON, each one either whole or ignored.

    checkpoints/
      version-000000004711/
        parameters.safetensors   the network's state dict
        optimiser.safetensors    the optimiser's tensors, `<parameter index>.<name>`
        random.safetensors       torch's random states
        state.json               counters, versions and the ledger of accepted unrolls
        manifest.json            bytes and SHA-256 of the other four; written last

A checkpoint is written under a temporary name, synced and renamed, so a crash leaves none or all of it; the manifest tells one
that a failing disk has torn, and the one before is used.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from impala.errors import CheckpointError
from run_directory.files import sync_directory, write_synced

_PREFIX = "version-"
_TEMPORARY = ".writing-"
_MANIFEST = "manifest.json"
_STATE = "state.json"
_TENSOR_FILES = ("parameters", "optimiser", "random")

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a learner needs to go on.

    Attributes:
        version: the parameter version of `parameters`.
        parameters: the network's state dict.
        optimiser: the optimiser's tensors, by `<parameter index>.<name>`.
        random: torch's random states, by device.
        state: JSON values: counters and the ledger of accepted unrolls.
    """

    version: int
    parameters: Mapping[str, Tensor]
    optimiser: Mapping[str, Tensor]
    random: Mapping[str, Tensor]
    state: Mapping[str, Any]


def save_checkpoint(directory: Path, checkpoint: Checkpoint, *, keep: int) -> Path:
    """Writes a checkpoint, deletes all but the newest `keep`, and returns the path of the new one.

    Raises:
        OSError: the disk is full or not writable; earlier checkpoints are untouched.
    """
    directory.mkdir(parents=True, exist_ok=True)
    final = checkpoint_path(directory, checkpoint.version)
    if final.exists():
        if _is_whole(final):  # the same weights, saved a moment ago: to replace them would risk the only whole copy
            return final
        shutil.rmtree(final)
    temporary = directory / f"{_TEMPORARY}{final.name}"
    for left_behind in directory.glob(f"{_TEMPORARY}*"):  # by processes that were killed while they wrote
        shutil.rmtree(left_behind, ignore_errors=True)
    temporary.mkdir()
    try:
        _write(temporary, checkpoint)
        temporary.rename(final)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_directory(directory)
    # The one just written is kept whatever it is called: a broken one may have a higher number.
    others = [path for path in _newest_first(directory) if path != final]
    for old in others[keep - 1 :]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def _write(directory: Path, checkpoint: Checkpoint) -> None:
    content = {
        "parameters.safetensors": safetensors.torch.save(dict(checkpoint.parameters)),
        "optimiser.safetensors": safetensors.torch.save(dict(checkpoint.optimiser)),
        "random.safetensors": safetensors.torch.save(dict(checkpoint.random)),
        _STATE: json.dumps({"version": checkpoint.version, **checkpoint.state}, indent=2).encode(),
    }
    manifest = {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in content.items()}
    content[_MANIFEST] = json.dumps(manifest, indent=2).encode()
    for name, data in content.items():
        write_synced(directory / name, data)
    sync_directory(directory)


def checkpoint_path(directory: Path, version: int) -> Path:
    """Returns where a version's checkpoint is, or would be."""
    return directory / f"{_PREFIX}{version:012d}"


def load_newest_checkpoint(directory: Path) -> Checkpoint | None:
    """Returns the newest whole checkpoint, or None where there is none at all. A broken one is named in the log and passed over.

    Raises:
        CheckpointError: there are checkpoints, and not one is whole.
    """
    candidates = _newest_first(directory)
    for path in candidates:
        try:
            return load_checkpoint(path)
        except CheckpointError as error:
            log.error("checkpoint passed over: %s", error)
    if candidates:
        raise CheckpointError(f"{directory}: none of the {len(candidates)} checkpoints is whole")
    return None


def load_checkpoint(path: Path) -> Checkpoint:
    """Returns one checkpoint, its files held against the manifest.

    Raises:
        CheckpointError: a file is missing, short, altered or unreadable.
    """
    content = _read_verified(path)
    try:
        tensors = {name: safetensors.torch.load(content[f"{name}.safetensors"]) for name in _TENSOR_FILES}
        state = json.loads(content[_STATE])
        version = int(state.pop("version"))
    # Of RuntimeError: a header that torch has no tensor for, and JSON of brackets within brackets without end.
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RuntimeError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path.name}: cannot be read ({error!r})") from error
    return Checkpoint(version=version, state=state, **tensors)


def _read_verified(path: Path) -> dict[str, bytes]:
    try:
        manifest = json.loads((path / _MANIFEST).read_bytes())
        content = {}
        for name, expected in manifest.items():
            data = (path / os.path.basename(name)).read_bytes()  # noqa: PTH119 - a manifest names files of its own folder only
            if len(data) != expected["bytes"] or hashlib.sha256(data).hexdigest() != expected["sha256"]:
                raise CheckpointError(f"{path.name}/{name}: {len(data)} bytes that do not match the manifest")
            content[name] = data
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path.name}: torn ({error!r})") from error
    return content


def _is_whole(path: Path) -> bool:
    try:
        load_checkpoint(path)
    except CheckpointError:
        return False
    return True


def _newest_first(directory: Path) -> list[Path]:
    return sorted(directory.glob(f"{_PREFIX}*"), reverse=True)
