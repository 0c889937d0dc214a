"""The actor registry: who joined, which incarnation counts, and which unrolls have been answered."""

import json
from types import SimpleNamespace
from typing import Any

import pytest

from impala.errors import InvalidMessage, Mismatch
from learner_server import actor_registry
from learner_server.actor_registry import Actor, ActorRegistry, SequenceLedger, merge_registries

BOUND = 1024  # answers above the floor that a ledger keeps


def make_ledger(*sequences: int) -> SequenceLedger:
    ledger = SequenceLedger()
    for sequence in sequences:
        ledger.record(sequence, accepted=True)
    return ledger


def accept(registry: ActorRegistry, actor: Actor, sequence: int, *, incarnation: int = 1, accepted: bool = True) -> None:
    registry.record(actor, incarnation, sequence, accepted=accepted, env_steps=15, parameter_version=3)


class Clock:
    """A clock in place of `time.monotonic`, in the registry alone."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(actor_registry, "time", SimpleNamespace(monotonic=lambda: self.now))


def test_a_host_cannot_break_a_line_of_the_log() -> None:
    assert ActorRegistry().join("a", 1, "here\n\x1b[2JERROR all is lost\u202e", 1).host == "here??[2JERROR all is lost?"


def test_a_new_ledger_has_answered_nothing() -> None:
    assert [SequenceLedger().answer(sequence) for sequence in (1, 2, 1000)] == [None] * 3


@pytest.mark.parametrize("accepted", [True, False])
def test_a_ledger_remembers_each_answer(accepted: bool) -> None:
    ledger = SequenceLedger()
    ledger.record(4, accepted=accepted)
    assert [ledger.answer(sequence) for sequence in (3, 4, 5)] == [None, accepted, None]


def test_answers_out_of_order_leave_the_gaps_open() -> None:
    ledger = make_ledger(1, 2, 5, 3, 8)
    assert [sequence for sequence in range(1, 10) if ledger.answer(sequence)] == [1, 2, 3, 5, 8]


def test_the_floor_rises_over_closed_gaps() -> None:
    ledger = make_ledger(5, 4, 2, 3, 7)
    assert (ledger.floor, sorted(ledger.above)) == (0, [2, 3, 4, 5, 7])
    ledger.record(1, accepted=True)
    assert (ledger.floor, sorted(ledger.above)) == (5, [7])


def test_a_refusal_is_remembered_below_the_floor_too() -> None:
    ledger = SequenceLedger()
    for sequence, accepted in ((1, True), (2, False), (3, True)):
        ledger.record(sequence, accepted=accepted)
    assert [ledger.answer(sequence) for sequence in (1, 2, 3)] == [True, False, True]


def test_recording_an_answer_twice_changes_nothing() -> None:
    ledger = make_ledger(1, 2, 3, 2, 5, 5)
    assert (ledger.floor, sorted(ledger.above)) == (3, [5])


def test_a_ledger_is_bounded_whatever_is_never_answered() -> None:
    ledger = make_ledger(*range(2, 10_000, 2))
    assert len(ledger.above) <= BOUND
    assert ledger.answer(9_998) is True
    assert ledger.answer(9_997) is None


def test_a_ledger_of_refusals_is_bounded() -> None:
    ledger = SequenceLedger()
    for sequence in range(1, 3 * BOUND):
        ledger.record(sequence, accepted=False)
    assert len(ledger.refused) == BOUND
    assert ledger.answer(3 * BOUND - 1) is False


def test_an_actor_of_a_restarted_learner_goes_on_with_a_much_higher_sequence() -> None:
    ledger = make_ledger(*range(1, 11))
    for sequence in range(50_000, 50_000 + 2 * BOUND):
        assert ledger.answer(sequence) is None
        ledger.record(sequence, accepted=True)
        assert ledger.answer(sequence) is True
    assert (ledger.floor, ledger.above) == (50_000 + 2 * BOUND - 1, {})


def test_actors_are_numbered_in_the_order_of_joining() -> None:
    registry = ActorRegistry()
    indices = [registry.join(actor_id, 1, "host", 2).index for actor_id in ("a", "b", "c", "a")]
    assert indices == [0, 1, 2, 0]


@pytest.mark.parametrize("actor_id", ["", "x" * 129, "line\nbreak", "bell\a"])
def test_an_actor_id_is_1_to_128_printable_characters(actor_id: str) -> None:
    registry = ActorRegistry()
    with pytest.raises(InvalidMessage, match="actor_id: expected 1 to 128 printable characters"):
        registry.join(actor_id, 1, "host", 2)
    with pytest.raises(InvalidMessage, match="actor_id: expected 1 to 128 printable characters"):
        registry.find(actor_id, 1)
    assert registry.snapshot() == []


def test_an_actor_id_may_have_128_characters_of_any_script() -> None:
    assert ActorRegistry().join("ü" * 128, 1, "host", 2).joins == 1


def test_an_actor_that_has_not_joined_is_not_found() -> None:
    with pytest.raises(Mismatch, match="actor_id: expected an actor that has joined this learner, came 'a'"):
        ActorRegistry().find("a", 1)


def test_joining_again_keeps_the_answers_of_the_incarnation() -> None:
    registry = ActorRegistry()
    accept(registry, registry.join("a", 1, "host", 2), 1)
    assert registry.join("a", 1, "host", 2).ledger.answer(1) is True


def test_a_newer_incarnation_starts_its_sequences_over() -> None:
    registry = ActorRegistry()
    accept(registry, registry.join("a", 1, "host", 2), 1)
    actor = registry.join("a", 2, "host", 2)
    assert actor.ledger.answer(1) is None
    assert registry.find("a", 2) is actor


@pytest.mark.parametrize("call", ["join", "find"])
def test_an_incarnation_that_was_replaced_is_turned_away(call: str) -> None:
    registry = ActorRegistry()
    registry.join("a", 5, "host", 2)
    calls = {"join": lambda: registry.join("a", 4, "host", 2), "find": lambda: registry.find("a", 4)}
    with pytest.raises(Mismatch, match="incarnation: expected 5, which joined last as 'a', came 4"):
        calls[call]()


def test_a_late_answer_to_a_replaced_incarnation_is_not_taken_for_the_new_ones() -> None:
    registry = ActorRegistry()
    registry.join("a", 1, "host", 2)
    actor = registry.join("a", 2, "host", 2)
    accept(registry, actor, 1, incarnation=1)
    assert actor.ledger.answer(1) is None
    assert actor.env_steps == 15


def test_an_incarnation_that_has_not_joined_is_not_found() -> None:
    registry = ActorRegistry()
    registry.join("a", 5, "host", 2)
    with pytest.raises(Mismatch, match="incarnation: expected 5"):
        registry.find("a", 6)


def test_only_accepted_unrolls_count_as_an_actors_steps() -> None:
    registry = ActorRegistry()
    actor = registry.join("a", 1, "host", 2)
    accept(registry, actor, 1)
    accept(registry, actor, 2, accepted=False)
    assert [(found.env_steps, found.parameter_version) for found in registry.snapshot()] == [(15, 3)]
    assert [actor.ledger.answer(sequence) for sequence in (1, 2)] == [True, False]


def test_a_host_name_is_cut_to_128_characters() -> None:
    assert ActorRegistry().join("a", 1, "h" * 1000, 2).host == "h" * 128


@pytest.mark.parametrize("call", ["join", "find"])
def test_a_call_shows_that_an_actor_is_there(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, registry = Clock(monkeypatch), ActorRegistry()
    registry.join("a", 1, "host", 2)
    registry.join("b", 1, "host", 2)
    clock.now += 2.0
    registry.find("a", 1)
    clock.now += 60.0
    assert len(registry.seen_within(10.0)) == 0
    if call == "join":
        registry.join("a", 1, "host", 2)
    else:
        registry.find("a", 1)
    assert len(registry.seen_within(10.0)) == 1
    clock.now += 10.0
    assert len(registry.seen_within(10.0)) == 1
    # Of one that was silent for so long more patience is had.
    clock.now += 0.5 if call == "join" else 240.5
    assert len(registry.seen_within(10.0)) == 0


def test_an_actor_whose_unrolls_take_long_is_missed_only_after_several_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, registry = Clock(monkeypatch), ActorRegistry()
    registry.join("a", 1, "host", 2)
    for _ in range(3):
        clock.now += 100.0
        registry.find("a", 1)  # a submission
        registry.greet("a")  # the weights after it
    clock.now += 300.0
    assert (registry.taking_part(), registry.by_task(), registry.tasks_within(30.0)) == (1, [1], {0})
    assert registry.snapshot()[0].silent_after(10.0) == pytest.approx(320.0)
    clock.now += 21.0
    assert (registry.taking_part(), registry.by_task(), registry.tasks_within(30.0)) == (0, [0], set())


def test_no_actor_is_waited_for_for_hours(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, registry = Clock(monkeypatch), ActorRegistry()
    registry.join("a", 1, "host", 2)
    clock.now += 36_000.0
    registry.find("a", 1)
    assert registry.snapshot()[0].silent_after(10.0) == 600.0


def test_one_long_silence_is_soon_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, registry = Clock(monkeypatch), ActorRegistry()
    registry.join("a", 1, "host", 2)
    clock.now += 600.0
    for _ in range(30):
        registry.find("a", 1)
        clock.now += 0.5
    assert registry.snapshot()[0].silent_after(10.0) == 10.0


def restored(registry: ActorRegistry) -> ActorRegistry:
    """Returns what a learner that read the registry from a checkpoint has."""
    copy = ActorRegistry(registry._tasks)
    copy.restore(json.loads(json.dumps(registry.to_json())))
    return copy


def test_a_restored_registry_writes_what_it_read() -> None:
    registry = ActorRegistry(2)
    for actor_id, incarnation in (("a", 7), ("b", 2**64 - 1)):
        actor = registry.join(actor_id, incarnation, "host", 2)
        for sequence, accepted in ((1, True), (2, False), (5, True), (6, False)):
            accept(registry, actor, sequence, incarnation=incarnation, accepted=accepted)
    assert [kept["task"] for kept in registry.to_json()["actors"].values()] == [0, 1]
    assert restored(registry).to_json() == registry.to_json()


def test_actors_of_a_restored_registry_join_before_they_submit() -> None:
    registry = ActorRegistry()
    registry.join("a", 7, "host", 2)
    copy = restored(registry)
    assert copy.seen_within(1e9) == []
    with pytest.raises(Mismatch, match="an actor that has joined this learner"):
        copy.find("a", 7)


def test_a_restored_registry_tells_retries_from_new_unrolls() -> None:
    registry = ActorRegistry()
    actor = registry.join("a", 7, "host", 2)
    for sequence, accepted in ((1, True), (2, False), (4, False), (6, True)):
        accept(registry, actor, sequence, incarnation=7, accepted=accepted)
    copy = restored(registry)
    copy.join("a", 7, "host", 2)
    ledger = copy.find("a", 7).ledger
    assert [ledger.answer(sequence) for sequence in range(1, 8)] == [True, False, None, False, None, True, None]


def test_a_restored_registry_numbers_new_actors_after_the_old_ones() -> None:
    registry = ActorRegistry()
    registry.join("a", 1, "host", 2)
    registry.join("b", 1, "host", 2)
    copy = restored(registry)
    assert [copy.join(actor_id, 1, "host", 2).index for actor_id in ("c", "b", "a")] == [2, 1, 0]


def test_each_new_incarnation_is_another_life() -> None:
    registry = ActorRegistry()
    assert [registry.join("a", incarnation, "host", 2).lives for incarnation in (1, 1, 4, 4, 5)] == [0, 0, 1, 1, 2]


def test_a_restored_registry_turns_older_incarnations_away_and_names_what_that_may_be() -> None:
    registry = ActorRegistry()
    registry.join("a", 7, "host", 2)
    copy = restored(registry)
    with pytest.raises(
        Mismatch, match=r"7, which joined last as 'a' before this learner was started, came 6: is the clock of this"
    ):
        copy.join("a", 6, "host", 2)
    copy.join("a", 7, "host", 2)
    with pytest.raises(Mismatch, match=r"7, which joined last as 'a', came 6$"):
        copy.join("a", 6, "host", 2)


def test_an_actor_that_waits_for_a_place_is_there_however_long_it_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, registry = Clock(monkeypatch), ActorRegistry()
    actor = registry.join("a", 1, "host", 2)
    with registry.waiting(actor):
        clock.now += 60.0
        assert [seen.actor_id for seen in registry.seen_within(10.0)] == ["a"]
    clock.now += 60.0
    assert registry.seen_within(10.0) == []


def test_an_actor_that_was_silent_for_a_day_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, registry = Clock(monkeypatch), ActorRegistry()
    registry.join("gone", 1, "host", 2)
    clock.now += 90_000.0
    registry.join("here", 1, "host", 2)
    assert list(registry.to_json()["actors"]) == ["here"]
    assert registry.join("new", 1, "host", 2).index == 2


# --- Tasks


def tasks_of(registry: ActorRegistry, *actor_ids: str, incarnation: int = 1) -> list[int]:
    """Returns the tasks that these actors are given as they join, one after the other."""
    return [registry.join(actor_id, incarnation, "host", 2).task for actor_id in actor_ids]


def test_actors_are_spread_evenly_over_the_tasks() -> None:
    registry = ActorRegistry(3)
    assert tasks_of(registry, "a", "b", "c", "d", "e", "f", "g") == [0, 1, 2, 0, 1, 2, 0]


def test_a_new_actor_goes_where_the_fewest_are_that_still_take_part(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, registry = Clock(monkeypatch), ActorRegistry(2)
    assert tasks_of(registry, "a", "b", "c", "d") == [0, 1, 0, 1]
    clock.now += 60.0
    for actor_id in ("a", "c", "d"):
        registry.find(actor_id, 1)
    assert tasks_of(registry, "e") == [1]


def test_an_actor_that_waits_for_a_place_still_counts_for_its_task(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, registry = Clock(monkeypatch), ActorRegistry(2)
    with registry.waiting(registry.join("a", 1, "host", 2)):
        clock.now += 60.0
        assert tasks_of(registry, "b") == [1]


def test_an_actor_that_comes_back_keeps_its_task_whatever_became_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, registry = Clock(monkeypatch), ActorRegistry(2)
    tasks_of(registry, "a", "b", "c")
    clock.now += 60.0
    # The neediest task is the first both times.
    assert tasks_of(registry, "b", incarnation=2) == [1]
    assert tasks_of(restored(registry), "b", incarnation=3) == [1]


def test_actors_of_an_earlier_process_do_not_count_before_they_join() -> None:
    registry = ActorRegistry(2)
    tasks_of(registry, "a")
    assert tasks_of(restored(registry), "b", "a", "c") == [0, 0, 1]


# --- Several learners


def test_no_two_actors_of_a_run_have_the_same_index_however_many_learners_there_are() -> None:
    indices: list[int] = []
    kept: dict[str, Any] = {"next_index": 0, "actors": {}}
    for ranks in (2, 3, 1, 2):
        registries = [ActorRegistry(rank=rank, ranks=ranks) for rank in range(ranks)]
        for rank, registry in enumerate(registries):
            registry.restore(kept)
            # Not as many here as there.
            indices += [registry.join(f"{len(indices)}-{number}", 1, "host", 2).index for number in range(1 + 2 * rank)]
        kept = merge_registries([registry.to_json() for registry in registries])
    assert len(set(indices)) == len(indices) == len(kept["actors"])


def test_of_an_actor_that_several_learners_know_its_latest_life_is_kept() -> None:
    first, second = ActorRegistry(rank=0, ranks=2), ActorRegistry(rank=1, ranks=2)
    for registry, incarnation, sequences in ((first, 1, 5), (second, 2, 1)):
        actor = registry.join("moved", incarnation, "host", 2)
        for sequence in range(1, sequences + 1):
            registry.record(actor, incarnation, sequence, accepted=True, env_steps=1, parameter_version=1)
    for registries in ([first, second], [second, first]):
        merged = merge_registries([registry.to_json() for registry in registries])
        assert (merged["actors"]["moved"]["incarnation"], merged["actors"]["moved"]["floor"]) == (2, 1)
    # Of one life, what has been answered most.
    third = ActorRegistry()
    third.restore(second.to_json())
    actor = third.join("moved", 2, "host", 2)
    third.record(actor, 2, 2, accepted=True, env_steps=1, parameter_version=1)
    assert merge_registries([third.to_json(), second.to_json()])["actors"]["moved"]["floor"] == 2


def test_the_steps_of_an_actor_that_moved_are_those_that_all_learners_counted() -> None:
    kept: dict[str, Any] = {"next_index": 0, "actors": {}}
    for incarnation, counted in enumerate(([7, 20], [1, 2], [0, 40]), start=1):
        # As after a restart of both: what was counted before is counted once.
        registries = [ActorRegistry(rank=rank, ranks=2) for rank in range(2)]
        for registry, env_steps in zip(registries, counted, strict=True):
            registry.restore(kept)
            actor = registry.join("moved", incarnation, "host", 2)
            registry.record(actor, incarnation, 1, accepted=True, env_steps=env_steps, parameter_version=1)
        kept = merge_registries([registry.to_json() for registry in registries])
    assert kept["actors"]["moved"]["env_steps"] == 70


def test_an_actor_that_was_sent_away_takes_no_part_until_it_joins_again() -> None:
    registry = ActorRegistry()
    registry.join("a", 1, "host", 2)
    registry.join("b", 1, "host", 2)
    registry.send_away("a")
    registry.send_away("nobody")
    registry.find("a", 1)  # what it has under way
    assert (registry.taking_part(), registry.taking_part(but="b")) == (1, 0)
    registry.join("a", 1, "host", 2)
    assert registry.taking_part() == 2


def test_learners_that_know_nothing_of_each_other_begin_with_different_tasks() -> None:
    registries = [ActorRegistry(4, rank=rank, ranks=2) for rank in range(2)]
    assert [tasks_of(registry, "a", "b") for registry in registries] == [[0, 1], [2, 3]]


def test_an_actor_is_given_the_task_that_has_the_fewest_in_all_learners() -> None:
    registry = ActorRegistry(3)
    registry.note_elsewhere([1, 1, 0])
    assert tasks_of(registry, "a", "b", "c", "d") == [2, 0, 1, 2]
    assert registry.by_task() == [1, 1, 2]
    registry.note_elsewhere([])
    assert tasks_of(registry, "e") == [0]


def test_a_task_is_served_while_an_actor_that_was_sent_away_still_waits_in_line(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, registry = Clock(monkeypatch), ActorRegistry(2)
    actors = [registry.join(actor_id, 1, "host", 2) for actor_id in ("a", "b")]
    registry.send_away("b")
    with registry.waiting(actors[1]):
        clock.now += 60.0
        registry.find("a", 1)
        assert registry.tasks_within(30.0) == {0, 1}
    clock.now += 300.0
    assert registry.tasks_within(30.0) == set()
