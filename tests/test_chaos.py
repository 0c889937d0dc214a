"""The parts of a chaos run that need no hours: recovery times, programs that are started again, the books of actors."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from benchmarks import supervised
from benchmarks.chaos import Injected, Recovery, recovery_report
from benchmarks.chaos_faults import Fault, Kind
from benchmarks.supervised import Life, Supervised
from benchmarks.witness import read_book


def life(began: float, listens: float | None) -> Life:
    process: Any = None
    return Life(process, began, listens=listens)


def injected(began: float, ended: float) -> Injected:
    fault = Fault(at=0.0, kind=Kind.BLACK_HOLE_ALL, actor=0, seconds=ended - began, delay_seconds=0.0)
    return Injected(fault, began, ended, hit=True)


def test_recovery_is_from_the_kill_to_the_first_new_update_and_without_the_start_of_the_process() -> None:
    report = recovery_report([Recovery(killed=10.0, updates=5, updated=16.0)], [], [life(0.0, 2.0), life(10.1, 13.0)])
    assert report["undisturbed"] == {"count": 1, "median": 6.0, "worst": 6.0, "p90": 6.0}
    assert report["undisturbed_from_listening"]["median"] == 3.0
    assert report["process_start"]["worst"] == 2.9


def test_a_recovery_during_which_something_else_went_wrong_is_told_apart() -> None:
    lives = [life(0.0, 2.0), life(10.1, 13.0)]
    recoveries = [Recovery(killed=10.0, updates=5, updated=16.0)]
    for other in (injected(15.0, 15.0), injected(3.0, 12.0)):
        report = recovery_report(recoveries, [other], lives)
        assert (report["all"]["count"], report["undisturbed"]["count"]) == (1, 0)
    assert recovery_report(recoveries, [injected(3.0, 9.0), injected(17.0, 18.0)], lives)["undisturbed"]["count"] == 1


def test_a_recovery_that_took_two_processes_was_disturbed() -> None:
    lives = [life(0.0, 2.0), life(10.1, None), life(12.0, 14.0)]
    assert recovery_report([Recovery(killed=10.0, updates=5, updated=16.0)], [], lives)["undisturbed"]["count"] == 0


def test_a_kill_after_which_nothing_was_learnt_is_counted() -> None:
    report = recovery_report([Recovery(killed=10.0, updates=5)], [], [life(0.0, 2.0)])
    assert (report["kills"], report["without_a_new_update"], report["all"]) == (1, 1, {"count": 0})


def test_a_program_is_started_again_until_it_is_the_last_and_an_end_of_its_own_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervised, "_AFTER_A_FAILURE_SECONDS", 0.0)
    program = Supervised(
        "calendar", ["2026", "2"], tmp_path / "calendar.log", at_death=lambda _: len(program.lives) < 2 or finish()
    )

    def finish() -> None:
        program.finish()

    assert asyncio.run(program.run()) == 0
    assert len(program.lives) == 2
    assert program.surprises == ["calendar: ended with 0, told []"]
    assert (tmp_path / "calendar.log").read_text().count("February 2026") == 2


def test_the_book_counts_an_unroll_once_however_often_it_was_acknowledged(tmp_path: Path) -> None:
    book = tmp_path / "book"
    book.write_text("7 1 160\n7 2 158\n7 2 158\n9 1 160\n")
    assert sum(read_book(book).values()) == 478
    assert read_book(tmp_path / "none") == {}
