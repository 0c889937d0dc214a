"""What a learner prints: through the console, above the display, or each of it as an event of the log."""

import io
import logging
import os
import sys
import time
from contextlib import suppress
from typing import Any

from rich.console import Console
from rich.text import Text

from impala.log_lines import HumanLine
from impala.logs import Lines

log = logging.getLogger(__name__)
# Not of this package: the status page's events are what this package logs, and figures would crowd them out.
figures_log = logging.getLogger("figures")

_STYLES = {logging.WARNING: "yellow", logging.ERROR: "red", logging.CRITICAL: "bold red"}
_FIGURES_SECONDS = 2.0


class _Output(Console):
    """Standard output, whose reader may go away (`| head`, a closed session): what is printed then is lost, and nothing else is.

    rich would raise SystemExit, in whichever thread prints, which may be the one that answers actors.
    """

    def on_broken_pipe(self) -> None:
        """Called by rich; has whatever is printed from now on go nowhere, at the interpreter's end, too."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def say(console: Console, text: str) -> None:
    """Prints a line of a program's own, with rich's markup, however long it is; a disk under it that is full ends no run."""
    with suppress(OSError):
        console.print(text, highlight=False, soft_wrap=True)


def standard_output() -> Console:
    """Returns the console that is the program's standard output, on which no character that the terminal lacks ends a run."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    # Where the environment forces colours upon what is no terminal, lines stay lines.
    return _Output(force_terminal=None if sys.stdout.isatty() else False)


def on_console(console: Console) -> Lines:
    """Returns what writes the log for people to a console: a line an event, however narrow it is, above a live display."""

    def write(line: str, level: int) -> None:
        console.print(Text(line, style=_STYLES.get(level, "")), soft_wrap=True, highlight=False)

    return Lines(write, HumanLine("%H:%M:%S"))


class EventConsole(Console):
    """A console, as far as printing lines goes, on which each is an event of the log."""

    def __init__(self) -> None:
        super().__init__(file=io.StringIO())

    def print(self, *objects: Any, **_: Any) -> None:
        """Logs what would be printed, without its colours."""
        log.info(" ".join(Text.from_markup(str(each)).plain for each in objects))


class FigureLog:
    """Logs a run's figures instead of displaying them: now and then, and the last ones."""

    def __init__(self) -> None:
        self._next = 0.0

    def show(self, figures: dict[str, Any]) -> None:
        """Logs the newest figures, unless others were a moment ago."""
        if "ended" in figures or time.monotonic() >= self._next:
            self._next = time.monotonic() + _FIGURES_SECONDS
            steps, mean = figures["env_steps"], figures["mean_return_100"]
            text = "%s steps, mean return of the last 100 episodes %s"
            figures_log.info(text, f"{steps:,}", "-" if mean is None else f"{mean:.1f}", extra={"figures": figures})

    def close(self) -> None:
        """Does nothing: there is no screen to leave in order."""
