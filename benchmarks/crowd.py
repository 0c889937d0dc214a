"""Simulated actors, any number in one process: the real client, a connection and a thread each, and synthetic CartPole unrolls.

    python -m benchmarks.crowd --learner HOST:PORT --actors 500 --name a --pause 2

Prints a JSON object for each thing that happens to one of them: an attempt to join, a join, an unroll's answer, and whether the
learner is reached; `at` is of `time.monotonic`. Ends with SIGTERM.
"""

import argparse
import json
import logging
import queue
import random
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from actor_client import connection
from actor_client.client import LearnerClient, Redirect
from actor_client.connection import Closed
from benchmarks.scale import synthetic_unroll

_START_SECONDS = 5.0


class Witness(LearnerClient):
    """The real client, whose calls and answers are told to `tell`."""

    def __init__(self, *args: Any, tell: Callable[..., None], **kwargs: Any) -> None:
        super().__init__(*args, reached=lambda reached: tell("reached", reached=reached), **kwargs)
        self._tell = tell

    def _call(self, name: str, attempt: Callable[[], Any], *, rejoin: bool = False) -> Any:
        def witnessed() -> Any:
            if name == "Join":
                self._tell("join-attempt")
            return attempt()

        answer = super()._call(name, witnessed, rejoin=rejoin)
        if name == "Join":
            self._tell("joined")
        elif name == "SubmitTrajectory" and answer is not None:
            self._tell("answered", accepted=answer.accepted, duplicate=answer.duplicate, reason=answer.reason)
        return answer


def act(client: LearnerClient, environments: int, pause: float, *, start_after: float) -> None:
    """Joins and sends unrolls until the client is closed."""
    time.sleep(start_after)
    try:
        assignment = client.join(environments)
        assert not isinstance(assignment, Redirect)
        client.start(assignment)
        unroll = synthetic_unroll(assignment.unroll_spec.unroll_length, environments)
        while (parameters := client.next_parameters()) is not None:
            unroll.parameter_version[:] = parameters.version
            began = time.monotonic()
            time.sleep(pause)
            if not client.submit(unroll, [], began):
                return
    except Closed:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--learner", required=True, help="HOST:PORT")
    parser.add_argument("--actors", type=int, default=1)
    parser.add_argument("--name", default="crowd", help="their names are this and a number")
    parser.add_argument("--environments", type=int, default=1, help="of each unroll")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds that collecting an unroll takes")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    # A connection each: channels to one address would share one. All else is the client's own.
    connection._OPTIONS = (*connection._OPTIONS, ("grpc.use_local_subchannel_pool", 1))  # type: ignore[misc]
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    threading.stack_size(512 * 1024)
    clients = []
    for index in range(arguments.actors):

        def tell(event: str, name: str = f"{arguments.name}-{index}", **fields: Any) -> None:
            lines.put(json.dumps({"at": time.monotonic(), "actor": name, "event": event, **fields}))

        client = Witness(
            arguments.learner, actor_id=f"{arguments.name}-{index}", incarnation=time.time_ns(), host="crowd", tell=tell
        )
        clients.append(client)
        after = random.random() * _START_SECONDS if arguments.actors > 1 else 0.0  # noqa: S311
        options = {"start_after": after}
        threading.Thread(target=act, args=(client, arguments.environments, arguments.pause), kwargs=options, daemon=True).start()
    signal.signal(signal.SIGTERM, lambda *_: lines.put(None))
    while (line := lines.get()) is not None:
        print(line, flush=True)


if __name__ == "__main__":
    main()
