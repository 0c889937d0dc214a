"""Log lines: an event is a line, whatever is in it, and one that repeats itself without end is held back and counted."""

import json
import logging
import math
import sys
from datetime import datetime, timedelta
from typing import Any

import pytest

from impala.log_lines import MOST_ALIKE, WINDOW_SECONDS, HumanLine, JsonLine, Repeats


def event(text: str, *arguments: object, level: int = logging.INFO, at: float = 1e9, **fields: Any) -> logging.LogRecord:
    record = logging.getLogger("here").makeRecord("here", level, "file.py", 1, text, arguments, None, extra=fields)
    record.created = at
    return record


def fault(text: str, error: Exception) -> logging.LogRecord:
    """Returns an event with a traceback."""
    try:
        raise error
    except Exception:
        record = event(text, level=logging.ERROR)
        record.exc_info = sys.exc_info()
        return record


def human(record: logging.LogRecord) -> str:
    return HumanLine("TIME").format(record)


def as_json(record: logging.LogRecord) -> dict[str, Any]:
    text = JsonLine().format(record)
    assert "\n" not in text
    return json.loads(text, parse_constant=pytest.fail)  # type: ignore[no-any-return]


# --- For people


def test_a_line_for_people_has_time_level_and_text() -> None:
    assert human(event("unroll %d was late", 3)) == "TIME INFO     unroll 3 was late"


def test_what_holds_for_the_process_follows_unless_the_event_says_it_itself() -> None:
    facts = {"actor_id": "local-0", "parameter_version": 7, "rank": None}
    assert human(event("late", facts=facts)) == "TIME INFO     late [actor local-0, version 7]"
    assert human(event("late, of version 3", facts=facts, parameter_version=3)) == (
        "TIME INFO     late, of version 3 [actor local-0]"
    )


@pytest.mark.parametrize("hostile", ["a\nTIME ERROR b", "a\rb", "a\x1b[2Jb", "a\u2028b", "a\x85b", "a\x00b"])
def test_what_comes_from_outside_breaks_no_line_and_moves_no_cursor(hostile: str) -> None:
    line = human(event("actor joined from %s", hostile))
    assert line.isprintable()
    assert line.endswith("b")


def test_a_traceback_cannot_be_taken_for_events() -> None:
    first, *rest = human(fault("call failed", ValueError("no\nTIME INFO     all is well\x1b[2J"))).split("\n")
    assert first == "TIME ERROR    call failed"
    assert rest[-1] == "    TIME INFO     all is well\\x1b[2J"
    assert all(line.startswith("    ") for line in rest)


# --- As JSON


def test_a_line_of_json_has_time_level_logger_message_and_what_was_passed() -> None:
    line = as_json(event("unroll %d was late", 3, facts={"actor_id": "local-0", "parameter_version": 7}, parameter_version=6))
    time = datetime.fromisoformat(line.pop("time"))
    assert (time.timestamp(), time.utcoffset()) == (1e9, timedelta(0))
    assert line == {
        "level": "INFO",
        "logger": "here",
        "message": "unroll 3 was late",
        "actor_id": "local-0",
        "parameter_version": 6,
    }


def test_a_traceback_is_a_field() -> None:
    line = as_json(fault("call failed", ValueError("no\nmore")))
    assert line["message"] == "call failed"
    assert line["traceback"].startswith("Traceback (most recent call last):")
    assert line["traceback"].endswith("ValueError: no\nmore")


def test_whatever_is_passed_is_json() -> None:
    line = as_json(event("x", rate=math.nan, figures={1: (math.inf, 2)}, fault=ValueError("no"), level_=True))
    assert (line["rate"], line["figures"], line["fault"], line["level_"]) == (None, {"1": [None, 2]}, "no", True)


def test_what_is_passed_takes_the_place_of_nothing() -> None:
    assert as_json(event("x", time="never", logger="no"))["logger"] == "here"


@pytest.mark.parametrize("line", [human, as_json])
def test_arguments_that_do_not_fit_are_said_all_the_same(line: Any) -> None:
    assert "%d of %d (1,)" in str(line(event("%d of %d", 1)))


# --- Repeats


def admitted(repeats: Repeats, records: list[logging.LogRecord]) -> list[int]:
    """Returns, for each event that goes into the log, how many were held back before it."""
    return [record.held_back for record in records if repeats.admits(record)]  # type: ignore[attr-defined]


def test_the_first_so_many_of_a_window_go_and_the_first_of_the_next_says_how_many_did_not() -> None:
    burst = [event("actor %d joined", number, at=100.0) for number in range(MOST_ALIKE + 5)]
    later = [event("actor 99 joined at last", at=100.0), *(event("actor %d joined", 7, at=100.0 + WINDOW_SECONDS) for _ in "ab")]
    assert admitted(Repeats(), burst + later) == [0] * MOST_ALIKE + [0] + [5, 0]


def test_events_of_another_template_level_or_fault_are_others() -> None:
    repeats = Repeats()
    assert len(admitted(repeats, [event("x") for _ in range(99)])) == MOST_ALIKE
    others = [event("y"), event("x", level=logging.ERROR), fault("x", ValueError()), fault("x", KeyError())]
    assert admitted(repeats, others) == [0] * 4


def test_a_clock_that_was_set_back_silences_nobody() -> None:
    repeats = Repeats()
    assert len(admitted(repeats, [event("x", at=1000.0) for _ in range(99)])) == MOST_ALIKE
    assert admitted(repeats, [event("x", at=10.0)]) == [99 - MOST_ALIKE]


def test_events_without_end_take_no_memory_without_end() -> None:
    repeats = Repeats()
    assert len(admitted(repeats, [event(f"{number}") for number in range(5000)])) == 5000
    assert len(repeats._windows) == 1000


def test_what_was_held_back_and_never_said_is_said_in_the_end() -> None:
    repeats = Repeats()
    admitted(repeats, [event("actor %d joined", number) for number in range(MOST_ALIKE + 2)])
    assert [record.getMessage() for record in repeats.left()] == ["2 more were held back: actor %d joined"]
    assert repeats.left() == []


@pytest.mark.parametrize("line", [human, as_json])
def test_an_event_says_how_many_like_it_were_held_back(line: Any) -> None:
    said = line(event("x", held_back=1200))
    assert said == "TIME INFO     x (and 1,200 more like it, held back)" if isinstance(said, str) else said["held_back"] == 1200
