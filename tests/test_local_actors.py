"""Local actors: started by the learner whatever becomes of their logs."""

import json
import logging
from pathlib import Path

import pytest

from learner_server.local_actors import LocalActorFailed, LocalActors


def test_an_actor_whose_log_cannot_be_written_is_started_all_the_same(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "logs").write_bytes(b"in the way")
    with caplog.at_level(logging.ERROR):
        actors = LocalActors(1, "127.0.0.1:1", tmp_path / "logs")
    actors.stop(0.0)
    assert caplog.messages[0] == f"local actor 0 starts without a log: cannot write to {tmp_path / 'logs'}: File exists"


def test_what_an_actor_prints_is_in_its_log(tmp_path: Path) -> None:
    actors = LocalActors(1, "nowhere", tmp_path / "new" / "logs")
    actors._actors[0].process.wait(60)
    actors.stop(0.0)
    assert "learner: expected HOST:PORT" in (tmp_path / "new" / "logs" / "actor-0.log").read_text()


def test_the_last_words_of_an_actor_that_logs_json_are_its_message(tmp_path: Path) -> None:
    actors = LocalActors(1, "nowhere", tmp_path / "logs", log_format="json")
    actors._actors[0].process.wait(60)
    with pytest.raises(LocalActorFailed) as failed:
        actors.look_after()
    actors.stop(0.0)
    assert str(failed.value) == "local actor 0 ended with code 2: impala-actor: learner: expected HOST:PORT, came 'nowhere'"
    assert json.loads((tmp_path / "logs" / "actor-0.log").read_text())["level"] == "ERROR"
    assert (tmp_path / "logs" / "actor-0.err").read_text() == ""
