"""When several learners take a step: who is waited for, for how long, and whose word counts."""

import pytest

from learner_server.rounds import LEAST_PATIENCE_SECONDS, MOST_PATIENCE_SECONDS, End, Round, Rounds, Standing


def decide(rounds: Rounds, now: float, *ready: bool) -> bool:
    """Returns whether ranks of which these are ready take a step."""
    return rounds.decide([Standing(now=now, ready=each, env_steps=10) for each in ready]).step


def steps_of(rounds: Rounds, *ready: bool, start: float = 0.0, seconds: float = 100.0) -> list[float]:
    """Returns when steps were taken by ranks that stayed as they are, asked every tenth of a second."""
    times = [start + 0.1 * index for index in range(int(10 * seconds))]
    return [now for now in times if decide(rounds, now, *ready)]


@pytest.mark.parametrize(
    "standing",
    [
        Standing(now=1234.5, ready=True, env_steps=7, end=None, rate_scale=0.25, log=True, save=False),
        *(Standing(now=0.0, ready=False, end=end, save=True) for end in End),
    ],
)
def test_a_standing_travels_as_numbers(standing: Standing) -> None:
    assert Standing.of_numbers(standing.numbers()) == standing
    assert all(isinstance(number, float) for number in standing.numbers())


def test_a_learner_by_itself_takes_a_step_whenever_it_has_a_batch() -> None:
    rounds = Rounds(1)
    assert [decide(rounds, now, ready) for now, ready in enumerate([False, True, True, False, True])] == [
        False, True, True, False, True,
    ]  # fmt: skip


def test_a_step_is_taken_when_all_have_a_batch() -> None:
    rounds = Rounds(3)
    assert not decide(rounds, 0.0, True, True, False)
    assert decide(rounds, 0.01, True, True, True)


def test_no_step_is_taken_when_none_has_a_batch() -> None:
    assert steps_of(Rounds(2), False, False) == []


def test_a_rank_without_a_batch_is_waited_for_once_and_then_passed_over() -> None:
    rounds = Rounds(2)
    first, second, *_ = steps_of(rounds, True, False)
    assert first == pytest.approx(LEAST_PATIENCE_SECONDS)
    assert second == pytest.approx(first + 0.1)
    assert (rounds.passes_over(0), rounds.passes_over(1)) == (False, True)


def test_a_rank_that_was_passed_over_counts_again_once_it_has_a_batch() -> None:
    rounds = Rounds(2)
    steps_of(rounds, True, False)
    assert decide(rounds, 200.0, True, True)
    assert not rounds.passes_over(1)
    assert not decide(rounds, 200.1, True, False)


def test_a_rank_that_comes_back_alone_waits_for_the_others() -> None:
    rounds = Rounds(2)
    steps_of(rounds, True, False)
    assert not decide(rounds, 200.0, False, True)
    assert decide(rounds, 200.1, True, True)


def test_patience_begins_with_each_step_anew() -> None:
    rounds = Rounds(2)
    assert not decide(rounds, 0.0, True, False)
    assert decide(rounds, 0.9, True, True)
    assert not decide(rounds, 1.5, True, False)
    assert not decide(rounds, 2.4, True, False)
    assert decide(rounds, 2.6, True, False)


@pytest.mark.parametrize(("took", "patience"), [(0.01, LEAST_PATIENCE_SECONDS), (5.0, 15.0), (1000.0, MOST_PATIENCE_SECONDS)])
def test_patience_is_three_times_what_the_last_whole_step_took(took: float, patience: float) -> None:
    rounds = Rounds(2)
    decide(rounds, 0.0, True, True)
    decide(rounds, took, True, True)
    first = steps_of(rounds, True, False, start=took)[0]
    assert first - took == pytest.approx(patience, abs=0.11)


def test_steps_without_everyone_do_not_teach_patience() -> None:
    rounds = Rounds(2)
    decide(rounds, 0.0, True, True)
    assert not decide(rounds, 10.0, True, False)
    assert decide(rounds, 20.0, True, False)
    assert steps_of(rounds, False, True, start=21.0)[0] - 21.0 == pytest.approx(LEAST_PATIENCE_SECONDS, abs=0.11)


def test_the_steps_of_a_round_are_those_of_the_batches_there_are() -> None:
    standings = [Standing(now=0.0, ready=True, env_steps=40), Standing(now=0.0, ready=False, env_steps=0)]
    standings.append(Standing(now=0.0, ready=True, env_steps=2))
    assert Rounds(3).decide(standings).env_steps == 42


def test_clock_schedule_and_records_are_rank_0s() -> None:
    ours = Standing(now=5.0, ready=True, rate_scale=0.5, log=True, save=False)
    theirs = Standing(now=99.0, ready=True, rate_scale=0.1, log=False, save=True)
    assert Rounds(2).decide([ours, theirs]) == Round(step=True, env_steps=0, end=None, rate_scale=0.5, log=True, save=False)


def test_a_clock_of_another_rank_does_not_end_patience() -> None:
    rounds = Rounds(2)
    for theirs in (0.0, 1e6):
        standings = [Standing(now=0.0, ready=True), Standing(now=theirs, ready=False)]
        assert not rounds.decide(standings).step


@pytest.mark.parametrize(
    ("ends", "end"),
    [
        ((None, None), None),
        ((None, End.STOPPED), End.STOPPED),
        ((End.SOLVED, End.STOPPED), End.SOLVED),
        ((End.TOTAL_STEPS, None), End.TOTAL_STEPS),
        ((End.FAILED, End.SOLVED), End.FAILED),
    ],
)
def test_one_that_ends_ends_all(ends: tuple[End | None, End | None], end: End | None) -> None:
    assert Rounds(2).decide([Standing(now=0.0, ready=False, end=each) for each in ends]).end == end
