"""What a soak concludes from its readings."""

from typing import Any

import pytest

from benchmarks.soak import faults_of, growth


def reading(seconds: float, resident: int) -> dict[str, Any]:
    held: dict[str, float] = {
        "resident_kib": resident,
        "anonymous_kib": resident // 2,
        "descriptors": 20,
        "threads": 9,
        "cpu_seconds": seconds / 10,
    }
    return {"seconds": seconds, "learner": held}


def test_growth_is_from_the_end_of_the_warm_up_to_the_end() -> None:
    # Up by half while warming up, by a tenth afterwards, one reading at the end an outlier.
    readings = [reading(float(at), 1000 + min(at, 500) if at < 600 else 1500) for at in range(0, 700, 10)]
    readings += [reading(float(at), 1650 if at < 990 else 9000) for at in range(700, 1000, 10)]
    figures = growth(readings, "learner", 600.0, 100.0)
    assert figures["growth"] == pytest.approx(0.1)
    assert figures["resident_kib"]["most"] == 9000
    assert figures["processor_share"] == pytest.approx(0.1)


def sound_report() -> dict[str, Any]:
    flat = {"after_warm_up": 20, "at_the_end": 21, "most": 30}
    figures = {"growth": 0.019, "descriptors": dict(flat), "threads": dict(flat)}
    return {
        "learner": dict(figures),
        "actor": dict(figures),
        "ended_badly": [],
        "accounts_balance": True,
        "exit_codes": {"learner": 0, "actor": 0},
        "seconds": 7200,
        "seconds_asked_for": 7200,
        "scrapes_without_an_answer": 0,
    }


def test_a_sound_soak_has_no_faults() -> None:
    assert faults_of(sound_report()) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"learner": sound_report()["learner"] | {"growth": 0.02}}, "learner: memory grew by 2.0%"),
        ({"actor": sound_report()["actor"] | {"threads": {"after_warm_up": 9, "at_the_end": 12}}}, "actor: 3 more threads"),
        ({"ended_badly": [("passer-by-3", -11)]}, "passer-by-3 ended with -11"),
        ({"accounts_balance": False}, "does not balance"),
        ({"exit_codes": {"learner": -9, "actor": 0}}, "learner ended with -9"),
        ({"seconds": 100}, "ended after 100 s"),
        ({"scrapes_without_an_answer": 1}, "1 scrapes"),
    ],
)
def test_what_is_not_sound_is_said(changes: dict[str, Any], words: str) -> None:
    (fault,) = faults_of(sound_report() | changes)
    assert words in fault
