"""impala-learner: the command line of the learner."""

import logging
import signal
import sys
import threading
from types import FrameType
from typing import Any

import tyro
from rich.console import Console
from rich.logging import RichHandler

from impala.errors import ConfigError, ImpalaError
from learner_server.config import LearnerConfig
from learner_server.presets import preset
from learner_server.run import run_learner

EXIT_CONFIG = 2


def parse(arguments: list[str]) -> LearnerConfig:
    """Returns the configuration that a command line asks for; flags override the preset's.

    Raises:
        ConfigError: it cannot work.
        SystemExit: code 2 for flags that do not exist or cannot be read, 0 for --help.
    """
    name = _preset_name(arguments)
    fields: dict[str, Any] = dict(preset(name)) if name else {}
    fields.setdefault("env", tyro.MISSING)
    default = LearnerConfig(preset=name, **fields)
    return tyro.cli(LearnerConfig, default=default, args=arguments, prog="impala-learner", config=(tyro.conf.OmitArgPrefixes,))


def _preset_name(arguments: list[str]) -> str:
    for index, argument in enumerate(arguments):
        if argument == "--preset" and index + 1 < len(arguments):
            return arguments[index + 1]
        if argument.startswith("--preset="):
            return argument.partition("=")[2]
    return ""


def main() -> None:
    """Runs a learner and exits: 0 done, 1 failed or fell short, 2 cannot run as asked."""
    console = Console()
    logging.basicConfig(
        level=logging.INFO,
        format="%(message)s",
        handlers=[RichHandler(console=console, show_path=False, markup=False, log_time_format="%H:%M:%S")],
    )
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    try:
        sys.exit(run_learner(parse(sys.argv[1:]), console, _stop_on_signals()))
    except ConfigError as error:
        print(f"impala-learner: {error}", file=sys.stderr)  # noqa: T201 - the one line that a wrong command line gets
        sys.exit(EXIT_CONFIG)
    except ImpalaError as error:
        log = logging.getLogger(__name__)
        log.error("%s", error)
        sys.exit(1)


def _stop_on_signals() -> threading.Event:
    """Returns an event that SIGTERM and Ctrl-C set. A second signal has its usual effect, for whoever cannot wait."""
    stop = threading.Event()

    def handle(number: int, _: FrameType | None) -> None:
        stop.set()
        signal.signal(number, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, handle)
    signal.signal(signal.SIGINT, handle)
    return stop


if __name__ == "__main__":
    main()
