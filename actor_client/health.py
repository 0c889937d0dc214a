"""grpc.health.v1 for orchestrators: an actor's own port for it, and impala-health, which asks any program's."""

import sys
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import tyro
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from impala.addresses import split_address
from impala.errors import ConfigError

EXIT_NOT_SERVING, EXIT_CANNOT_RUN = 1, 2


@contextmanager
def health_port(address: str | None) -> Iterator[Callable[[bool], None]]:
    """Yields a function that says whether this program serves, and meanwhile answers grpc.health.v1 on `address` so.

    In clear and to everyone: it says nothing else. Without an address nothing is answered.

    Raises:
        ConfigError: the address cannot be listened on.
    """
    if address is None:
        yield lambda _: None
        return
    servicer = health.HealthServicer()

    def report(serving: bool) -> None:
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        servicer.set("", status)

    report(False)
    with futures.ThreadPoolExecutor(2, thread_name_prefix="health") as threads:
        # A port that another process listens on is an error, not a port to share.
        server = grpc.server(threads, options=(("grpc.so_reuseport", 0),), maximum_concurrent_rpcs=16)
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
        try:
            server.add_insecure_port(address)
        except RuntimeError as error:
            raise ConfigError(f"health: cannot listen on {address}: {error}") from error
        server.start()
        try:
            yield report
        finally:
            server.stop(None).wait()


@dataclass(frozen=True, kw_only=True)
class HealthConfig:
    """Asks a port for grpc.health.v1 whether its program serves; for probes.

    Exit code 0: it does; 1: it does not, or does not answer; 2: cannot ask.
    """

    address: tyro.conf.Positional[str]
    """HOST:PORT, as given to --health of impala-learner or impala-actor."""
    seconds: float = 3.0
    """How long to wait for the answer."""

    def __post_init__(self) -> None:
        split_address(self.address, field="address")


def is_serving(config: HealthConfig) -> bool:
    """Returns whether the program at an address says SERVING in time."""
    # A probe asks this machine or its neighbour: no proxy that the environment names is on the way.
    with grpc.insecure_channel(config.address, options=(("grpc.enable_http_proxy", 0),)) as channel:
        try:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=config.seconds)
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def main() -> None:
    """Asks, and exits with the answer."""
    try:
        config = tyro.cli(HealthConfig, prog="impala-health")
    except ConfigError as error:
        print(f"impala-health: {error}", file=sys.stderr)  # noqa: T201 - the one line that a wrong command line gets
        sys.exit(EXIT_CANNOT_RUN)
    sys.exit(0 if is_serving(config) else EXIT_NOT_SERVING)


if __name__ == "__main__":
    main()
