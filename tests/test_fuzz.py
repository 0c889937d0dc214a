"""Some thousands of what `make fuzz` sends a million of: documented refusals, and nothing taken that breaks a promise."""

import asyncio
import random

import pytest

from protos import impala_pb2 as pb
from tests.fuzz.attack import Attack
from tests.fuzz.decode import Campaign, run_random
from tests.fuzz.targets import Finding, make_targets
from tests.service import running_service

TARGETS = {target.name: target for target in make_targets()}
GROUPS = {
    "submissions": "submit-",
    "calls": ("join", "get-"),
    "assignments": "assignment",
    "weights": "param",
    "files": ("check", "jour"),
}


@pytest.mark.parametrize("group", GROUPS)
def test_mutated_input_is_refused_as_documented_or_keeps_what_is_promised(group: str) -> None:
    campaign = Campaign(600)
    campaign.weighted = [target for target in campaign.weighted if target.name.startswith(GROUPS[group])]
    run_random(campaign, seed=1)
    campaign.close()
    assert not campaign.findings
    assert campaign.taken.total() > 10, "almost nothing got past the parser"


@pytest.mark.parametrize("name", TARGETS)
def test_every_seed_is_taken(name: str) -> None:
    assert all(TARGETS[name].check(seed) for seed in TARGETS[name].seeds)


def test_an_undocumented_error_is_a_finding_that_is_kept_once() -> None:
    campaign = Campaign(10)
    (target,) = (target for target in campaign.targets if target.name == "submit-0")
    object.__setattr__(target, "check", lambda _: 1 / 0)
    for _ in range(3):
        campaign.try_input(target, b"x")
    ((kind, finding),) = campaign.findings.items()
    assert kind.startswith("submit-0: ZeroDivisionError")
    assert finding["times"] == 3


def test_what_breaks_a_promise_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("impala.wire.tensors.check_choices", lambda *_: None)
    monkeypatch.setattr("impala.wire.unrolls.check_choices", lambda *_: None)
    request = pb.SubmitTrajectoryRequest.FromString(TARGETS["submit-0"].seeds[0])
    request.unroll.actions.data = b"\x09" + request.unroll.actions.data[1:]
    with pytest.raises(Finding, match="actions: out of range"):
        TARGETS["submit-0"].check(request.SerializeToString())


def test_the_same_seed_makes_the_same_inputs() -> None:
    target = TARGETS["submit-3"]
    made = [[target.mutate(target.seeds[0], rng) for _ in range(50)] for rng in (random.Random(4), random.Random(4))]
    assert made[0] == made[1]
    assert len(set(made[0])) > 40


def test_a_live_server_answers_mutated_messages_with_documented_refusals() -> None:
    with running_service(capacity=64) as service, service.trainer():
        attack = Attack(service.address, None, seed=1)
        asyncio.run(attack.run(300))
        assert not attack.findings
        assert attack.answers["submit"]["OK"] > 10
        assert not service.servicer.refused["internal"]
