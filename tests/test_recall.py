"""impala/Recall-v0: what it shows, when it asks, and what it pays."""

import numpy as np
import pytest

from impala.config import EnvironmentConfig
from impala.environments import VectorEnvironment

E, CUES, DELAY = 8, 3, 5
CONFIG = EnvironmentConfig(environment_id="impala/Recall-v0", kwargs={"cues": CUES, "delay": DELAY})


def play(answer: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns observations, [DELAY + 2, E, CUES + 1], rewards, [DELAY + 1, E], and lengths; every answer is so far off the cue."""
    environment = VectorEnvironment(CONFIG, E)
    observations = [environment.reset(seed=0)["observation"].copy()]
    rewards, lengths = [], []
    for _ in range(DELAY + 1):
        cues = observations[0][:, :CUES].argmax(-1)
        transition = environment.step((cues + answer) % CUES)
        observations.append(transition.observations["observation"].copy())
        rewards.append(transition.rewards)
        lengths += [episode.length for episode in transition.episodes]
    environment.close()
    return np.stack(observations), np.stack(rewards), np.array(lengths)


def test_the_cue_is_shown_in_the_first_observation_alone_and_asked_for_after_the_delay() -> None:
    observations, _, lengths = play(answer=0)
    assert (observations[0, :, :CUES].sum(-1) == 1).all()
    assert len(np.unique(observations[0, :, :CUES].argmax(-1))) > 1
    assert not observations[1:, :, :CUES].any()
    assert (observations[:, 0, CUES] == [0] * DELAY + [1, 0]).all()
    assert (lengths == [DELAY + 1] * E).all()


@pytest.mark.parametrize("answer", [0, 1, 2])
def test_only_the_right_answer_where_it_is_asked_for_is_rewarded(answer: int) -> None:
    _, rewards, _ = play(answer)
    assert not rewards[:-1].any()
    assert (rewards[-1] == (1.0 if answer == 0 else 0.0)).all()
