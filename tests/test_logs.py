"""The log of a program: one place, one form, whoever logs, and nothing that escapes it."""

import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from impala.log_lines import MOST_ALIKE, HumanLine, JsonLine
from impala.logs import Lines, always_say, asked_for, to_stream
from tests.programs import ENDLESS, Programs, exit_code, last

ROOT = Path(__file__).resolve().parent.parent


def parsed(text: str) -> list[dict[str, Any]]:
    """Returns the objects of a log, every line of which is one."""
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def lines(stream: io.StringIO) -> Lines:
    return to_stream(stream, JsonLine())


@pytest.fixture
def log(lines: Lines) -> Iterator[logging.Logger]:
    """A logger of its own, which writes JSON to the stream."""
    logger = logging.getLogger("tests.test_logs.log")
    logger.setLevel(logging.INFO)
    logger.addHandler(lines)
    yield logger
    logger.removeHandler(lines)


def test_repeats_are_held_back_and_the_end_says_how_many(log: logging.Logger, lines: Lines, stream: io.StringIO) -> None:
    for number in range(MOST_ALIKE + 3):
        log.warning("unroll %d was late", number)
    lines.close()
    said = parsed(stream.getvalue())
    assert len(said) == MOST_ALIKE + 1
    assert said[-1]["message"] == "3 more were held back: unroll %d was late"


def test_every_event_says_what_holds_when_it_happens(log: logging.Logger, lines: Lines, stream: io.StringIO) -> None:
    versions = iter((1, 2))
    lines.always_say(lambda: {"parameter_version": next(versions)})
    log.info("a")
    log.info("b")
    assert [line["parameter_version"] for line in parsed(stream.getvalue())] == [1, 2]


def test_facts_reach_the_log_of_the_process(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [logging.NullHandler(), to_stream(stream, JsonLine())])
    always_say(lambda: {"actor_id": "local-3"})
    logging.getLogger("tests").warning("x")
    assert parsed(stream.getvalue())[0]["actor_id"] == "local-3"


def test_a_log_that_cannot_be_written_stops_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: str, __: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(logging, "raiseExceptions", False)
    Lines(fail, HumanLine("")).handle(logging.makeLogRecord({"msg": "x"}))


@pytest.mark.parametrize(
    ("arguments", "form"),
    [
        (["--log-format", "json"], "json"),
        (["--env", "A", "--log-format=json"], "json"),
        (["--log_format", "json"], "json"),
        (["--log-format", "human"], "human"),
        (["--env", "json"], "human"),
        (["--log-format"], "human"),
    ],
)
def test_the_form_is_known_before_the_command_line_is_read(arguments: list[str], form: str) -> None:
    assert asked_for(arguments) == form


PROGRAM = """
import logging, sys, threading, warnings
from impala.logs import for_people, set_up
set_up(sys.argv[1], human=lambda: for_people(sys.stderr))
warnings.warn("old\\nhabits")
def work():
    raise KeyError("in\\na thread")
thread = threading.Thread(target=work, name="worker")
thread.start()
thread.join()
raise ValueError("at\\nlast")
"""


def run(form: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", PROGRAM, form], cwd=ROOT, capture_output=True, text=True, check=False)


def test_as_json_faults_that_nobody_caught_and_warnings_are_events() -> None:
    ended = run("json")
    assert (ended.returncode, ended.stderr) == (1, "")
    warning, thread, fault = parsed(ended.stdout)
    assert (warning["level"], "old\nhabits" in warning["message"]) == ("WARNING", True)
    assert (thread["message"], fault["message"]) == ("uncaught KeyError in thread worker", "uncaught ValueError")
    assert thread["traceback"].endswith("KeyError: 'in\\na thread'")
    assert fault["traceback"].endswith("ValueError: at\nlast")


def test_for_people_a_fault_that_nobody_caught_is_a_traceback() -> None:
    ended = run("human")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.endswith("ValueError: at\nlast\n")


# --- The programs


@pytest.mark.system
@pytest.mark.timeout(300)
def test_learner_and_actors_log_json_alone_with_actor_and_version(programs: Programs, tmp_path: Path) -> None:
    learner = programs.learner(tmp_path / "run", "--actors", "1", "--total-steps", "20000", "--log-format", "json")
    learner.wait(240.0)
    lines = parsed(programs.text(learner))
    (joined,) = [line for line in lines if line["message"].startswith("actor local-0 joined from ")]
    assert joined["actor_id"] == "local-0"
    assert joined["parameter_version"] >= 1
    assert any(line["message"].startswith("learner listens on 127.0.0.1:") for line in lines)
    shown = [line["figures"] for line in lines if "figures" in line]
    assert shown[-1] == last(tmp_path / "run")
    said = parsed((tmp_path / "run" / "logs" / "actor-0.log").read_text())
    assert {line["actor_id"] for line in said} == {"local-0"}
    assert (said[-1]["message"], said[-1]["parameter_version"] >= 1) == ("the run is over", True)


@pytest.mark.system
@pytest.mark.parametrize("form", ["human", "json"])
def test_an_actor_says_who_it_is_in_every_line(form: str, programs: Programs) -> None:
    actor = programs.actor("127.0.0.1:1", "--name", "far", "--log-format", form)
    programs.wait_until(lambda: programs.text(actor).endswith("\n"), actor)
    actor.terminate()
    assert exit_code(actor) == 0
    lines = programs.text(actor).splitlines()
    assert [line for line in lines if (form == "human") != line.endswith(" [actor far]")] == []
    assert form == "human" or {line["actor_id"] for line in parsed(programs.text(actor))} == {"far"}


@pytest.mark.system
def test_a_configuration_that_cannot_work_is_an_event_where_events_are_json(programs: Programs) -> None:
    learner = programs.start("learner_server", "--env", "Nope-v0", *ENDLESS, "--log-format", "json")
    assert exit_code(learner) == 2
    (line,) = parsed(programs.text(learner))
    assert line["message"].startswith("impala-learner: environment: cannot make 'Nope-v0'")
