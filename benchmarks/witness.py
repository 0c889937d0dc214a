"""An actor that keeps a book of what its learner acknowledged, so that the learner's account can be held against it.

    python -m benchmarks.witness BOOK --learner HOST:PORT ...       all else as impala-actor

Each line of the book is an unroll that was answered as accepted: incarnation, sequence, and steps. A line is written with one call
before the answer is handed on, so it outlives SIGKILL.
"""

import os
import sys
from pathlib import Path
from typing import Any

import grpc

from actor_client import __main__ as program
from actor_client import client, run
from protos import impala_pb2_grpc as pb_grpc

# Sequences whose steps are remembered; far more than are under way at once.
_KEPT = 1000


class _Witness(grpc.UnaryUnaryClientInterceptor):  # type: ignore[misc]
    """Sees every answer."""

    def __init__(self, book: int, steps: dict[int, int]) -> None:
        self._book, self._steps = book, steps

    def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        call = continuation(client_call_details, request)
        submits = client_call_details.method.endswith("SubmitTrajectory")
        if submits and call.exception() is None and call.result().accepted:
            os.write(self._book, f"{request.incarnation} {request.sequence} {self._steps[request.sequence]}\n".encode())
        return call


class WitnessedClient(client.LearnerClient):
    """The actor's own client, its channel watched."""

    book = -1

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._steps: dict[int, int] = {}
        channel = grpc.intercept_channel(self._connection._channel, _Witness(self.book, self._steps))
        self._connection._stub = pb_grpc.LearnerStub(channel)

    def submit(self, unroll: Any, *args: Any) -> bool:
        self._steps[self._sequence + 1] = unroll.env_steps
        self._steps.pop(self._sequence - _KEPT, None)  # answered long ago
        return super().submit(unroll, *args)


def read_book(path: Path) -> dict[tuple[int, int], int]:
    """Returns steps by incarnation and sequence of what was acknowledged; a retry that was answered again counts once."""
    if not path.exists():
        return {}
    rows = [list(map(int, line.split())) for line in path.read_text().splitlines()]
    return {(incarnation, sequence): steps for incarnation, sequence, steps in rows}


def main() -> None:
    WitnessedClient.book = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    run.LearnerClient = WitnessedClient  # type: ignore[misc]
    sys.argv = ["impala-actor", *sys.argv[2:]]
    program.main()


if __name__ == "__main__":
    main()
