"""impala-learner: the command line of the learner."""

import logging
import os
import signal
import sys
import threading
from functools import partial
from importlib.util import find_spec
from types import FrameType

import tyro

from impala.errors import ConfigError, ImpalaError
from impala.logs import asked_for, set_up
from learner_server.config import LearnerConfig
from learner_server.presets import preset

log = logging.getLogger(__name__)

EXIT_CONFIG = 2

# What the extra `learner` installs.
_EXTRA = ("aiohttp", "grpc_reflection", "matplotlib", "rich", "tensorboard")


def parse(arguments: list[str]) -> LearnerConfig:
    """Returns the configuration that a command line asks for; flags override the preset's.

    Raises:
        ConfigError: it cannot work.
        SystemExit: code 2 for flags that do not exist or cannot be read, 0 for --help.
    """
    name = _preset_name(arguments)
    read = partial(tyro.cli, LearnerConfig, args=arguments, prog="impala-learner", config=(tyro.conf.OmitArgPrefixes,))
    # Without a preset there is no default to start from: --env has none.
    config: LearnerConfig = read(default=LearnerConfig(preset=name, **preset(name))) if name else read()
    return config


def _preset_name(arguments: list[str]) -> str:
    for index, argument in enumerate(arguments):
        if argument == "--preset" and index + 1 < len(arguments):
            return arguments[index + 1]
        if argument.startswith("--preset="):
            return argument.partition("=")[2]
    return ""


def main() -> None:
    """Runs a learner and exits: 0 done, 1 failed or fell short, 2 cannot run as asked."""
    _check_installed()
    # Late: what they import comes with the extra `learner`, which an actor's machine does without.
    from learner_server.console import EventConsole, on_console, standard_output
    from learner_server.group import Place
    from learner_server.run import run_learner
    from learner_server.spans import spans_of_environment

    log_format = asked_for(sys.argv[1:])
    console = EventConsole() if log_format == "json" else standard_output()
    set_up(log_format, human=lambda: on_console(console))
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    try:
        place = Place.of_environment(os.environ)
        config, spans = parse(sys.argv[1:]), spans_of_environment(os.environ)
        sys.exit(run_learner(config, console, _stop_on_signals(in_group=place.size > 1), place=place, spans=spans))
    except ConfigError as error:
        if log_format == "json":
            log.error("impala-learner: %s", error)
        else:
            print(f"impala-learner: {error}", file=sys.stderr)  # noqa: T201 - the one line that a wrong command line gets
        sys.exit(EXIT_CONFIG)
    except ImpalaError as error:
        log.error("%s", error)
        sys.exit(1)


def _check_installed() -> None:
    missing = [name for name in _EXTRA if find_spec(name) is None]
    if missing:
        print(  # noqa: T201 - the one line that an installation for actors gets
            f"impala-learner: not installed here: {', '.join(missing)}; pip install 'impala-grpc[learner]'", file=sys.stderr
        )
        sys.exit(EXIT_CONFIG)


def _stop_on_signals(*, in_group: bool) -> threading.Event:
    """Returns an event that SIGTERM and Ctrl-C set. A second Ctrl-C has its usual effect, for whoever cannot wait.

    But in a group, where every process hears of a Ctrl-C twice: from the terminal, and from torchrun, which kills those that take
    too long. Likewise SIGTERM, which supervisors may send to a group of processes and to each of them; they have SIGKILL.
    """
    stop = threading.Event()

    def handle(number: int, _: FrameType | None) -> None:
        stop.set()
        if number == signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
        elif not in_group:
            signal.signal(number, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, handle)
    signal.signal(signal.SIGINT, handle)
    return stop


if __name__ == "__main__":
    main()
