"""Where the log of a program goes, and in which form. Programs set it up; everybody else logs as ever, with fields as `extra`."""

import logging
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from types import TracebackType
from typing import Any, Literal, TextIO

from impala.log_lines import HumanLine, JsonLine, Repeats

LogFormat = Literal["human", "json"]

log = logging.getLogger(__name__)


class Lines(logging.Handler):
    """Writes each event as one line, repeats held back.

    Args:
        write: called with a line, without its end, and the level's number.
        line: how an event becomes a line.
    """

    def __init__(self, write: Callable[[str, int], None], line: logging.Formatter) -> None:
        super().__init__()
        self._write = write
        self._repeats = Repeats()
        self._facts: Callable[[], Mapping[str, Any]] = dict
        self.setFormatter(line)

    def always_say(self, facts: Callable[[], Mapping[str, Any]]) -> None:
        """See the function of this name."""
        self._facts = facts

    def emit(self, record: logging.LogRecord) -> None:
        """Called by `logging`, by one thread at a time."""
        try:
            if self._repeats.admits(record):
                record.facts = self._facts()
                self._write(self.format(record), record.levelno)
        except Exception:  # a log that fails is no reason to stop; `logging.raiseExceptions` says whether it is told
            self.handleError(record)

    def close(self) -> None:
        """Says what was held back and not said; called by `logging` when the process ends."""
        with self.lock or nullcontext():
            for record in self._repeats.left():
                self.emit(record)
        super().close()


def set_up(form: LogFormat, *, human: Callable[[], Lines]) -> None:
    """Makes the log of this process go to one place.

    As JSON that is standard output, and uncaught exceptions and Python's warnings are events too.

    Args:
        human: makes what writes the log for people.
    """
    lines = human() if form == "human" else to_stream(sys.stdout, JsonLine())
    logging.basicConfig(level=logging.INFO, handlers=[lines])
    if form == "json":
        logging.raiseExceptions = False  # else it prints a traceback, where no line of JSON could be written
        logging.captureWarnings(True)
        sys.excepthook = _log_uncaught
        threading.excepthook = _log_uncaught_in_thread


def always_say(facts: Callable[[], Mapping[str, Any]]) -> None:
    """Adds fields to every event of this process from now on, as they are when it happens."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, Lines):
            handler.always_say(facts)


def to_stream(stream: TextIO, line: logging.Formatter) -> Lines:
    """Returns what writes to a stream."""
    return Lines(lambda text, _: print(text, file=stream, flush=True), line)


def for_people(stream: TextIO) -> Lines:
    """Returns what writes lines with date and time for people to a stream."""
    return to_stream(stream, HumanLine("%Y-%m-%d %H:%M:%S"))


def asked_for(arguments: Sequence[str]) -> LogFormat:
    """Returns the form that a command line asks for, before it is read: what is wrong with it is logged in that form."""
    for place, argument in enumerate(arguments):
        name, _, value = argument.replace("_", "-").partition("=")
        if name == "--log-format" and "json" in (value, *arguments[place + 1 : place + 2]):
            return "json"
    return "human"


def _log_uncaught(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    log.critical("uncaught %s", kind.__name__, exc_info=(kind, error, traceback))


def _log_uncaught_in_thread(arguments: threading.ExceptHookArgs) -> None:
    if arguments.exc_type is SystemExit or arguments.exc_value is None:
        return
    fault = (arguments.exc_type, arguments.exc_value, arguments.exc_traceback)
    name = "" if arguments.thread is None else arguments.thread.name
    log.critical("uncaught %s in thread %s", arguments.exc_type.__name__, name, exc_info=fault)
