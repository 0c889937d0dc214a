"""The files that users copy work as they stand."""

import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from impala.config import EnvironmentConfig
from impala.environments import OBSERVATION, Hosting, VectorEnvironment

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def test_the_custom_environment_is_made_by_module_and_name_and_can_be_solved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    config = EnvironmentConfig(environment_id="custom_environment:Corridor-v0", kwargs={"length": 3})
    try:
        environment = VectorEnvironment(config, 2, hosting=Hosting(allowed_modules=("custom_environment",)))
        assert environment.reset(0)[OBSERVATION].tolist() == [[0.0], [0.0]]
        transitions = [environment.step(np.array([1, 0])) for _ in range(100)]
    finally:
        sys.modules.pop("custom_environment", None)
        gymnasium.registry.pop("Corridor-v0", None)
    first, last = transitions[2], transitions[-1]
    assert (first.ended.tolist(), first.terminated.tolist(), first.episodes[0].episode_return) == ([0], [True, False], -3.0)
    # Environment 1 never left its place, until time was up.
    assert (last.ended.tolist()[-1], last.terminated.tolist()[1], last.episodes[-1].episode_return) == (1, False, -100.0)
