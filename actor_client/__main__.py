"""impala-actor: the command line of an actor."""

import logging
import os
import secrets
import signal
import socket
import sys
import threading
import time
from types import FrameType

import tyro

from actor_client.config import ActorConfig
from actor_client.run import ActorProcess
from impala.errors import ConfigError, ImpalaError, Refused
from impala.logs import always_say, asked_for, for_people, set_up

EXIT_CANNOT_RUN = 2


def main() -> None:
    """Runs an actor and exits: 0 when the run is over or it was told to stop, 1 failed, 2 waiting cannot help."""
    set_up(asked_for(sys.argv[1:]), human=lambda: for_people(sys.stderr))
    try:
        config = tyro.cli(ActorConfig, prog="impala-actor")
        host = socket.gethostname()
        actor = ActorProcess(
            config,
            actor_id=config.name or f"{host}-{secrets.token_hex(4)}",
            incarnation=time.time_ns(),
            host=host,
        )
        always_say(actor.facts)
        _stop_on_signals(actor)
        if config.end_with_stdin:
            threading.Thread(target=_stop_with_stdin, args=(actor,), name="stdin", daemon=True).start()
        actor.run()
    except (ConfigError, Refused) as error:
        logging.error("impala-actor: %s", error)
        sys.exit(EXIT_CANNOT_RUN)
    except ImpalaError as error:
        logging.error("impala-actor: %s", error)
        sys.exit(1)


def _stop_on_signals(actor: ActorProcess) -> None:
    def handle(number: int, _: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        # Not here: a handler runs between two instructions of the main thread, which may hold a lock that stopping takes.
        threading.Thread(target=actor.stop, name="stop", daemon=True).start()

    signal.signal(signal.SIGTERM, handle)
    signal.signal(signal.SIGINT, handle)


def _stop_with_stdin(actor: ActorProcess) -> None:
    os.read(sys.stdin.fileno(), 1)
    actor.stop()


if __name__ == "__main__":
    main()
