"""A log event as one line, for people or as JSON; and which events are so many that some are held back."""

import json
import logging
import math
from collections import OrderedDict
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

# Of one event so many in so long, and none of the rest until that is over.
MOST_ALIKE, WINDOW_SECONDS = 20, 10.0

# Events that are remembered: more than a program has, for libraries make their own.
_MOST_EVENTS = 1000

# What every record has; all else was passed by whoever logged it.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "held_back", "facts"}


class HumanLine(logging.Formatter):
    """Time, level and text. What holds for the whole process follows in brackets, where the event does not say it itself.

    Nothing that comes from elsewhere can begin a line or move the cursor: a traceback's lines are indented, and what a terminal
    would act on is written as an escape.

    Args:
        time: as for `time.strftime`.
    """

    def __init__(self, time: str) -> None:
        super().__init__(datefmt=time)

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line, and a fault's traceback below it."""
        passed = passed_fields(record)
        facts = [f"{_SHORT.get(name, name)} {value}" for name, value in facts_of(record).items() if name not in passed]
        text = [text_of(record), *([f"[{', '.join(facts)}]"] if facts else [])]
        if held_back := held_back_of(record):
            text.append(f"(and {held_back:,} more like it, held back)")
        line = f"{self.formatTime(record, self.datefmt)} {record.levelname:<8} {escape(' '.join(text))}"
        return "\n    ".join([line, *(escape(each) for each in traceback_of(record).splitlines())])


class JsonLine(logging.Formatter):
    """A JSON object: time (RFC 3339, UTC), level, logger, message, what was passed with the event, and a fault's traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {"time": time, "level": record.levelname, "logger": record.name, "message": text_of(record)}
        for name, value in (facts_of(record) | passed_fields(record)).items():
            line.setdefault(name, value)
        if held_back := held_back_of(record):
            line["held_back"] = held_back
        if traceback := traceback_of(record):
            line["traceback"] = traceback
        return json.dumps(_plain(line), allow_nan=False)


_SHORT = {"actor_id": "actor", "parameter_version": "version"}


def text_of(record: logging.LogRecord) -> str:
    """Returns an event's text; one whose arguments do not fit its template is said all the same."""
    try:
        return record.getMessage()
    except (TypeError, ValueError):
        return f"{record.msg} {record.args!r}"


def traceback_of(record: logging.LogRecord) -> str:
    """Returns the traceback that came with an event; '' for none."""
    formatter = logging.Formatter()
    parts = [formatter.formatException(record.exc_info)] if record.exc_info and record.exc_info[0] else []
    return "\n".join([*parts, *([record.stack_info] if record.stack_info else [])])


def passed_fields(record: logging.LogRecord) -> dict[str, Any]:
    """Returns what was passed with an event as `extra`, but for what is None."""
    return {name: value for name, value in vars(record).items() if name not in _STANDARD and value is not None}


def facts_of(record: logging.LogRecord) -> dict[str, Any]:
    """Returns what holds for the whole process, as of the event, but for what is None."""
    return {name: value for name, value in getattr(record, "facts", {}).items() if value is not None}


def held_back_of(record: logging.LogRecord) -> int:
    """Returns how many events like this one were held back before it."""
    count: int = getattr(record, "held_back", 0)
    return count


def escape(text: str) -> str:
    r"""Returns text in which nothing breaks a line or is acted on by a terminal: a newline is \n, as it would be in Python."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def _plain(value: Any) -> Any:
    """Returns a value as JSON can say it."""
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, str | int | float) else str(value)


class Repeats:
    """Which of the events that are alike go into the log: the first `MOST_ALIKE` in `WINDOW_SECONDS`.

    The next one says how many did not. Alike are those of one logger, level, template and kind of fault, whatever stands in the
    template; the first of a kind always goes.
    """

    def __init__(self) -> None:
        # By event: when its window began, how many went into the log since then, and how many did not.
        self._windows: OrderedDict[tuple[object, ...], tuple[float, int, int]] = OrderedDict()

    def admits(self, record: logging.LogRecord) -> bool:
        """Returns whether an event goes into the log; one that does then has `held_back`, how many like it did not."""
        fault = record.exc_info[0] if record.exc_info else None
        event = (record.name, record.levelno, str(record.msg), fault)
        began, admitted, held_back = self._windows.pop(event, (record.created, 0, 0))
        # Also where the clock was set back, by however much.
        if not 0.0 <= record.created - began < WINDOW_SECONDS:
            began, admitted = record.created, 0
        if admitted >= MOST_ALIKE:
            self._windows[event] = (began, admitted, held_back + 1)
            return False
        record.held_back = held_back
        self._windows[event] = (began, admitted + 1, 0)
        if len(self._windows) > _MOST_EVENTS:
            self._windows.popitem(last=False)
        return True

    def left(self) -> list[logging.LogRecord]:
        """Returns an event for each kind of which some were held back and none has come since to say so."""
        held_back = [(*event[:3], count) for event, (_, _, count) in self._windows.items() if count]
        self._windows.clear()
        return [
            logging.LogRecord(str(name), int(str(level)), "", 0, "%d more were held back: %s", (count, template), None)
            for name, level, template, count in held_back
        ]
