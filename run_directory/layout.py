"""Where things lie in a run directory, who may write to it, and whose it is."""

import fcntl
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from impala.config import AgentConfig
from impala.errors import ConfigError
from run_directory.files import write_json_atomically


class RunDirectory:
    """The paths of a run.

    config.json      what the run learns, and under `learner` the whole configuration of its first start
    metrics.jsonl    one JSON object a log interval, and one when the run ends; also the journal of its counters
    counters         what was counted since the last line, see `run_directory.counters`
    checkpoints/     see `run_directory.checkpoint`
    tensorboard/     event files
    wandb/           what the package wandb keeps, with --wandb
    logs/            what local actors print
    curve.png        mean return against steps and seconds
    trace.json       what learner and actors did for some seconds, where that was asked for
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.json"
        self.metrics = path / "metrics.jsonl"
        self.counters = path / "counters"
        self.checkpoints = path / "checkpoints"
        self.tensorboard = path / "tensorboard"
        self.logs = path / "logs"
        self.curve = path / "curve.png"
        self.trace = path / "trace.json"

    def claim(self, config: Mapping[str, Any], record: Mapping[str, Any] | None = None) -> TextIO:
        """Makes this process the run's one learner and writes `config.json`, or holds it against the one that is there.

        Args:
            config: the parts of the configuration that decide what a run is, as JSON values.
            record: the whole configuration, kept beside them under `learner` as of the run's first start.

        Returns:
            An open file that holds the claim for as long as it is open, or this process lives.

        Raises:
            ConfigError: not writable, in use by another learner, or a run of another configuration.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / "learner.lock").open("w")
        except OSError as error:
            raise ConfigError(f"run_dir: cannot write to {self.path}: {error.strerror}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.close()
            raise ConfigError(f"run_dir: {self.path} is in use by another learner; give this one its own") from error
        except OSError as error:
            lock.close()
            raise ConfigError(f"run_dir: cannot lock {lock.name}: {error.strerror}") from error
        try:
            self._check_or_write(config, record or {})
        except ConfigError:
            lock.close()
            raise
        except OSError as error:
            lock.close()
            raise ConfigError(f"run_dir: cannot write to {self.path}: {error.strerror}") from error
        return lock

    def agent_config(self) -> AgentConfig:
        """Returns what the run trains.

        Raises:
            ConfigError: not a run directory.
        """
        return AgentConfig.from_json(self.read_config().get("agent", {}))

    def read_config(self) -> dict[str, Any]:
        """Returns what `config.json` holds.

        Raises:
            ConfigError: not a run directory.
        """
        try:
            config = json.loads(self.config.read_bytes())
        except OSError as error:
            raise ConfigError(f"run_dir: {self.path} is not a run directory: cannot read config.json: {error.strerror}") from error
        except ValueError as error:
            raise ConfigError(f"run_dir: {self.config} is not JSON: {error}") from error
        if not isinstance(config, dict):
            raise ConfigError(f"run_dir: expected a JSON object in {self.config}, came {type(config).__name__}")
        return config

    def _check_or_write(self, config: Mapping[str, Any], record: Mapping[str, Any]) -> None:
        if not self.config.exists():
            write_json_atomically(self.config, {**config, "learner": record})
            return
        kept = {name: value for name, value in self.read_config().items() if name != "learner"}
        there, here = dict(leaves(kept)), dict(leaves(json.loads(json.dumps(config))))
        differences = [
            f"{name} is {there.get(name)!r} there and {here.get(name)!r} here"
            for name in sorted(there.keys() | here.keys())
            if there.get(name) != here.get(name)
        ]
        if differences:
            raise ConfigError(f"run_dir: {self.path} belongs to another configuration: {'; '.join(differences)}")


def leaves(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields each value of nested objects with its path, as in `loss.discount`."""
    for name, value in config.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
