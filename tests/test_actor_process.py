import threading

import pytest

from actor_client import run
from actor_client.client import LearnerClient
from actor_client.config import ActorConfig
from actor_client.run import ActorProcess


def test_a_stop_that_comes_while_the_connection_is_made_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    process = ActorProcess(ActorConfig(learner="127.0.0.1:1"), actor_id="a", incarnation=1, host="here")

    def connect(*args: object, **kwargs: object) -> LearnerClient:
        process.stop()  # finds no client to close yet
        return LearnerClient(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(run, "LearnerClient", connect)
    thread = threading.Thread(target=process.run, daemon=True)
    thread.start()
    thread.join(30.0)
    assert not thread.is_alive()
