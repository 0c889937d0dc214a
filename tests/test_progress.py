"""What a person sees of a run: everything that matters, live on a terminal, in plain lines elsewhere."""

import io
import re
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from learner_server.progress import ProgressDisplay

FIGURES: dict[str, Any] = {
    "seconds": 12.34,
    "env_steps": 250_000,
    "steps_per_second": 12_500.0,
    "mean_return_100": 123.45,
    "policy_lag_mean": 1.25,
    "queued_trajectories": 32,
    "actors": 2,
    "learner_updates": 390,
    "limit": "learner",
    "limit_evidence": "actors wait 60% of their time, the learner 2%",
}
PLAIN = "    12.3 s      250,000 steps     12,500 steps/s  return 123.5  lag 1.2  queue 32  actors 2  left 1:00  limit learner\n"


def shown(*figures: dict[str, Any], terminal: bool, target: float | None = None) -> str:
    """Returns what a display of one million steps leaves on its console."""
    console = Console(file=io.StringIO(), force_terminal=terminal, width=120, color_system=None, legacy_windows=False)
    display = ProgressDisplay(console, title="IMPALA  CartPole-v1", total_steps=1_000_000, stop_at_return=target)
    for figure in figures:
        display.show(figure)
    display.close()
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Stands in for the module `time`: `clock.now` is what it says."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr("learner_server.progress.time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


# --- Elsewhere


def test_where_there_is_no_terminal_a_plain_line_says_it_all() -> None:
    assert shown(FIGURES, terminal=False) == PLAIN


def test_a_terminal_that_cannot_move_its_cursor_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert shown(FIGURES, terminal=True) == PLAIN


def test_plain_lines_are_seconds_apart(clock: SimpleNamespace) -> None:
    console = Console(file=io.StringIO(), width=120)
    display = ProgressDisplay(console, title="", total_steps=1_000_000, stop_at_return=None)
    for step in range(9):
        clock.now = 1000.0 + 0.5 * step
        display.show({**FIGURES, "seconds": 0.5 * step})
    assert isinstance(console.file, io.StringIO)
    assert [line[:10].strip() for line in console.file.getvalue().splitlines()] == ["0.0 s", "2.0 s", "4.0 s"]


def test_the_last_figures_are_always_printed(clock: SimpleNamespace) -> None:
    text = shown(FIGURES, {**FIGURES, "env_steps": 300_000, "ended": "stopped"}, terminal=False)
    assert [line.split()[2] for line in text.splitlines()] == ["250,000", "300,000"]


def test_a_plain_line_is_never_wrapped() -> None:
    console = Console(file=io.StringIO(), width=20)
    ProgressDisplay(console, title="", total_steps=1_000_000, stop_at_return=None).show(FIGURES)
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue() == PLAIN


# --- On a terminal


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", "250,000"),
        ("steps/s", "12,500"),
        ("mean return", "123.5"),
        ("time left", "1:00"),
        ("updates", "390"),
        ("policy lag", "1.2"),
        ("queue", "32 trajectories"),
        ("actors", "2"),
    ],
)
def test_a_terminal_shows_every_figure_by_name(name: str, value: str) -> None:
    text = " ".join(shown(FIGURES, terminal=True).split())
    assert f" {name} {value} " in f" {text} "


def test_a_terminal_shows_what_is_trained_and_for_how_long() -> None:
    assert "IMPALA  CartPole-v1  12 s" in shown(FIGURES, terminal=True)


def test_a_terminal_shows_the_target_beside_the_return() -> None:
    assert "123.5 of 475 " in shown(FIGURES, terminal=True, target=475.0)


def test_a_terminal_shows_how_much_is_done() -> None:
    screens = [shown({**FIGURES, "env_steps": steps}, terminal=True).rpartition("\x1b[1A")[2] for steps in (250_000, 500_000)]
    # The bar is as wide as the screen, 120; without colours only the part that is done is drawn.
    assert [screen.count("━") for screen in screens] == [30, 60]


def test_a_terminal_shows_the_newest_figures_in_place() -> None:
    text = shown(FIGURES, {**FIGURES, "env_steps": 300_000, "ended": "stopped"}, terminal=True)
    assert "\x1b[1A" in text
    assert "300,000" in text.rpartition("\x1b[1A")[2]


def test_a_terminal_is_drawn_once_a_second(clock: SimpleNamespace) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120, color_system=None, legacy_windows=False)
    display = ProgressDisplay(console, title="", total_steps=1_000_000, stop_at_return=None)
    for step in range(5):
        clock.now = 1000.0 + 0.5 * step
        display.show({**FIGURES, "env_steps": step})
    assert isinstance(console.file, io.StringIO)
    assert re.findall(r"steps +(\d+) ", console.file.getvalue()) == ["0", "2", "4"]


def test_every_row_of_a_terminals_display_has_a_line_of_its_own() -> None:
    lines = shown(FIGURES, terminal=True).splitlines()
    steps = [line for line in lines if "250,000" in line][-1]
    updates = [line for line in lines if "390" in line][-1]
    assert "━" not in steps + updates
    assert steps != updates


def test_what_is_printed_meanwhile_stays_readable_above_the_display() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120, color_system=None, legacy_windows=False)
    display = ProgressDisplay(console, title="", total_steps=1_000_000, stop_at_return=None)
    display.show(FIGURES)
    console.print("actor 0 died")
    assert isinstance(console.file, io.StringIO)
    _, died, below = console.file.getvalue().partition("actor 0 died\n")
    display.close()
    assert died
    assert "250,000" in below


# --- A disk that fails

FAILING = {**FIGURES, "disk_failures": {"checkpoint": 3, "metrics": 0, "tensorboard": 12}, "checkpoint_age_seconds": 61.4}
SAID = "disk failures: checkpoint 3, tensorboard 12; newest checkpoint "


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize(("age", "said"), [(61.4, "61 s old"), (None, "none")])
def test_what_could_not_be_written_is_shown_and_how_old_the_newest_checkpoint_is(
    terminal: bool, age: float | None, said: str
) -> None:
    assert SAID + said in shown({**FAILING, "checkpoint_age_seconds": age}, terminal=terminal)


@pytest.mark.parametrize("terminal", [True, False])
def test_a_disk_that_never_failed_is_not_spoken_of(terminal: bool) -> None:
    assert "disk" not in shown({**FAILING, "disk_failures": {"checkpoint": 0, "metrics": 0}}, terminal=terminal)


# --- What is not known


@pytest.mark.parametrize("terminal", [True, False])
def test_what_is_not_known_yet_is_a_dash(terminal: bool) -> None:
    unknown = {**FIGURES, "mean_return_100": None, "policy_lag_mean": None, "steps_per_second": 0.0}
    text = " ".join(shown(unknown, terminal=terminal).split())
    dashes = ["mean return -", "policy lag -", "time left -"] if terminal else ["return -", "lag -", "left -"]
    assert [dash for dash in dashes if dash not in text] == []


@pytest.mark.parametrize(
    ("steps_left", "said"),
    [(0, "0:00"), (-50, "0:00"), (59, "0:59"), (61, "1:01"), (3599, "59:59"), (3600, "1:00:00"), (36_061, "10:01:01")],
)
def test_time_left_is_told_in_hours_minutes_and_seconds(steps_left: int, said: str) -> None:
    text = shown({**FIGURES, "env_steps": 1_000_000 - steps_left, "steps_per_second": 1.0}, terminal=False)
    assert text.endswith(f" left {said}  limit learner\n")
