"""Weights & Biases: the same figures under the same names, sent by a thread of its own, so that no network can hold training up.

Where they go (the cloud, a server, files) and as whom is the package's own business: `WANDB_MODE`, `WANDB_BASE_URL`, `wandb login`.
"""

import logging
import queue
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from impala.errors import ConfigError
from learner_server.disk_failures import DiskFailures

log = logging.getLogger(__name__)

# Lines that wait where it is slower than training: some minutes of them. Those beyond are left out, and counted as failures.
_MOST_WAITING = 500

# A run that ends leaves it so much time for the rest.
_END_SECONDS = 20.0


class _Failed(OSError):
    """The package could not do something, whatever it raises for that: a fault of disk or network, as far as training goes."""


@dataclass(frozen=True, kw_only=True)
class WandbRun:
    """Which run of Weights & Biases figures go to.

    Attributes:
        run_id: of the run directory: a run that is resumed goes on there.
        folder: the run directory, which names the run, and in which the package makes its own.
        config: shown beside the figures.
    """

    project: str
    run_id: str
    folder: Path
    config: Mapping[str, Any]


def check_wandb() -> None:
    """Makes sure that the package is there and knows as whom to come, asking on a terminal.

    Raises:
        ConfigError: it is not installed, or has no key.
    """
    try:
        import wandb
    except ImportError as error:
        raise ConfigError(f"wandb: not installed here: {error.name}; pip install 'impala-grpc[wandb]'") from error
    try:
        # Whether the key is right only the network can say, which is not waited for.
        wandb.login(verify=False)
    except wandb.UsageError as error:
        raise ConfigError(f"wandb: {_one_line(error)} Or set WANDB_MODE=offline, which needs no key") from error
    except Exception as error:  # its own, of which there are many; what begins the run will meet the same, or not
        log.warning("wandb: not logged in: %s", _one_line(error))


class WandbWriter:
    """Sends scalars to one run from a thread named `wandb`, begun with the first and ended by `close`.

    Args:
        failures: counts what could not be sent, under `wandb`.
    """

    def __init__(self, run: WandbRun, failures: DiskFailures) -> None:
        self._run = run
        self._failures = failures
        self._lines: queue.Queue[dict[str, float] | None] = queue.Queue(_MOST_WAITING)
        self._thread = threading.Thread(target=self._send_all, name="wandb", daemon=True)

    def write(self, scalars: Mapping[str, float], step: int) -> None:
        """Has scalars sent by name, at a step; returns at once.

        Raises:
            OSError: so many wait already that these are left out.
        """
        if not self._thread.ident:
            self._thread.start()
        try:
            self._lines.put_nowait({**scalars, "env_steps": step})
        except queue.Full:
            raise _Failed(f"{_MOST_WAITING} lines wait to be sent") from None

    def close(self) -> None:
        """Waits for what is under way, but not for long."""
        if not self._thread.ident:
            return
        # A full queue is one that nobody empties: its thread is left to itself, like one that does not come to an end.
        with suppress(queue.Full):
            self._lines.put(None, timeout=_END_SECONDS)
            self._thread.join(_END_SECONDS)
        if self._thread.is_alive():
            log.warning("wandb: not everything was sent within %.0f s of the end; metrics.jsonl has it", _END_SECONDS)

    def _send_all(self) -> None:
        run = None
        with self._failures.survived("wandb"), _translated():
            run = self._begin()
        while (line := self._lines.get()) is not None:
            # Without a run the figures go nowhere: its failure was counted, and said.
            if run is not None:
                with self._failures.survived("wandb"), _translated():
                    run.log(line)
        if run is not None:
            with self._failures.survived("wandb"), _translated():
                run.finish()

    def _begin(self) -> Any:
        import wandb

        run = wandb.init(
            project=self._run.project,
            id=self._run.run_id,
            name=self._run.folder.resolve().name,
            dir=str(self._run.folder),
            config=dict(self._run.config),
            resume="allow",
            # What a learner prints is not its business, nor is what it has to say a display's. When the process ends, the package
            # waits for whatever it is about; not for minutes.
            settings=wandb.Settings(console="off", silent=True, init_timeout=_END_SECONDS, finish_timeout=_END_SECONDS),
        )
        run.define_metric("env_steps")
        run.define_metric("*", step_metric="env_steps")
        log.info("wandb: %s", run.url or run.dir)
        return run


@contextmanager
def _translated() -> Iterator[None]:
    """Around what the package does: whatever it raises is raised as `_Failed`."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise _Failed(f"{type(error).__name__}: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
