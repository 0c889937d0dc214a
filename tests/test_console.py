"""What a learner prints: whole lines for people, events where the log is JSON."""

import errno
import io
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from impala.log_lines import HumanLine
from learner_server.console import EventConsole, FigureLog, on_console, say, standard_output
from learner_server.run import _describe
from run_directory.layout import RunDirectory

FIGURES: dict[str, Any] = {"env_steps": 12_345, "mean_return_100": None}


@pytest.mark.parametrize("terminal", [True, False])
def test_an_event_is_a_line_however_narrow_the_console_and_its_brackets_stay(terminal: bool) -> None:
    console = Console(file=io.StringIO(), width=20, force_terminal=terminal, color_system=None)
    lines = on_console(console)
    lines.setFormatter(HumanLine("TIME"))
    lines.handle(logging.makeLogRecord({"msg": "[red]" + "x" * 50, "levelname": "INFO"}))
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue() == f"TIME INFO     [red]{'x' * 50}\n"


def test_a_character_that_an_output_lacks_is_replaced_and_colours_make_no_terminal_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    monkeypatch.setenv("FORCE_COLOR", "1")
    console = standard_output()
    console.print("1 … 2")
    sys.stdout.flush()
    assert (console.is_terminal, written.getvalue()) == (False, b"1 ? 2\n")


# In a process of its own, for what must not happen is that it ends.
GONE = """
import sys, threading
from learner_server.console import say, standard_output

console = standard_output()
thread = threading.Thread(target=lambda: (say(console, "x" * 100_000), sys.stderr.write("the thread went on\\n")))
thread.start()
thread.join()
say(console, "to nobody")
print("nor this", flush=True)
sys.stderr.write("the program went on\\n")
"""


def test_a_reader_that_goes_away_ends_neither_program_nor_thread() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run([sys.executable, "-c", GONE], cwd=root, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "the thread went on\nthe program went on\n")


def test_a_full_disk_under_what_is_said_ends_nobody() -> None:
    class Full(io.StringIO):
        def flush(self) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        Console(file=Full()).print("to nobody")
    say(Console(file=Full()), "to nobody")


def test_a_folder_s_brackets_are_no_markup() -> None:
    console = Console(file=io.StringIO(), width=20, color_system=None)
    start: Any = SimpleNamespace(checkpoint=None, steps_trained=0)
    config: Any = None
    _describe(console, config, RunDirectory(Path("runs/a[lr=1][/y]")), start)
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue() == "run directory: runs/a[lr=1][/y]\n"


def test_what_is_printed_is_logged_without_its_colours(caplog: pytest.LogCaptureFixture) -> None:
    console = EventConsole()
    with caplog.at_level(logging.INFO):
        console.print("[bold green]solved[/]: 100%, 5 s", highlight=False, soft_wrap=True)
    assert caplog.messages == ["solved: 100%, 5 s"]
    assert not console.is_terminal


def test_figures_are_logged_now_and_then_and_at_the_end(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr("learner_server.console.time", SimpleNamespace(monotonic=lambda: clock.now))
    figures = FigureLog()
    with caplog.at_level(logging.INFO):
        for step in range(5):
            clock.now = 1000.0 + 0.5 * step
            figures.show({**FIGURES, "env_steps": step})
        figures.show({**FIGURES, "mean_return_100": 1.25, "ended": "stopped"})
    figures.close()
    assert [record.figures["env_steps"] for record in caplog.records] == [0, 4, 12_345]  # type: ignore[attr-defined]
    assert {record.name for record in caplog.records} == {"figures"}  # beside the events of learner_server
    assert caplog.messages[-1] == "12,345 steps, mean return of the last 100 episodes 1.2"
