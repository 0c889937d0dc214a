"""Actors and learners that cannot come together, as processes: what is said, and whether anybody waits. What a tapper sees."""

import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.programs import ENDLESS, Programs, exit_code, last
from tests.test_tls import Files

pytestmark = pytest.mark.system

TOKEN = "correct-horse-battery-staple"  # noqa: S105 - a test's
STRANGER = "another-horse-battery-staple"


@dataclass
class Learners:
    """Running learners, by what they show, and the files that go with them."""

    files: Files
    addresses: dict[str, str]

    def flags(self, *, token: str | None = TOKEN, ca: str | None = "own") -> list[str]:
        """Returns what an actor has."""
        flags = []
        if token is not None:
            path = self.files.folder / f"token-{token[:3]}"
            path.write_text(token)
            flags += ["--token-file", str(path)]
        return flags if ca is None else [*flags, "--tls-ca", str(self.files.ca(ca))]


@pytest.fixture(scope="module")
def learners(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Learners]:
    folder = tmp_path_factory.mktemp("learners")
    files, programs = Files(folder), Programs(folder)
    (folder / "token").write_text(TOKEN)
    guarded = ["--token-file", str(folder / "token")]
    shows: dict[str, list[str]] = {"clear": []}
    for name, pair in (
        ("good", files.pair()),
        ("expired", files.pair(expired=True)),
        ("other name", files.pair("learner.example")),
    ):
        shows[name] = [*guarded, "--tls-cert", str(pair[0]), "--tls-key", str(pair[1])]
    shows["mutual"] = [*shows["good"], "--tls-client-ca", str(files.ca())]
    started = {name: programs.learner(folder / name, *flags, *ENDLESS) for name, flags in shows.items()}
    addresses = {name: programs.address(learner).replace("127.0.0.1", "localhost") for name, learner in started.items()}
    yield Learners(files, addresses)
    programs.end()


REFUSALS = {
    "no token": ("good", {"token": None}, "UNAUTHENTICATED: authorization: expected 'Bearer TOKEN' with the learner's token"),
    "wrong token": (
        "good",
        {"token": STRANGER},
        "UNAUTHENTICATED: authorization: expected 'Bearer TOKEN' with the learner's token",
    ),
    "expired": ("expired", {}, "the learner's certificate is not valid today: issue a new one"),
    "foreign authority": ("good", {"ca": "foreign"}, "the learner's certificate is not from an authority in"),
    "another name": ("other name", {}, "the learner's certificate is for another name than localhost"),
    "TLS against clear": (
        "clear",
        {},
        "the learner does not speak TLS: start it with --tls-cert and --tls-key, or leave out --tls-ca",
    ),
    "clear against TLS": ("good", {"ca": None}, "the learner speaks TLS: give --tls-ca"),
    "no certificate": ("mutual", {}, "wants a certificate of its own authority, came none: give --tls-cert and --tls-key"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_an_actor_for_which_waiting_is_in_vain_says_why_and_exits_2(case: str, learners: Learners, tmp_path: Path) -> None:
    learner, has, said = REFUSALS[case]
    programs = Programs(tmp_path)
    actor = programs.actor(learners.addresses[learner], *learners.flags(**has))  # type: ignore[arg-type]
    assert exit_code(actor) == 2
    lines = [line for line in programs.text(actor).splitlines() if "impala-actor:" in line]
    assert len(lines) == 1, programs.text(actor)
    assert said in lines[0]
    assert TOKEN not in programs.text(actor)
    assert STRANGER not in programs.text(actor)


def test_an_actor_of_another_protocol_version_is_refused_with_both_versions(learners: Learners, tmp_path: Path) -> None:
    programs = Programs(tmp_path)
    (tmp_path / "older_actor.py").write_text(
        "import actor_client.client, actor_client.__main__ as program\nactor_client.client.PROTOCOL_VERSION = 7\nprogram.main()\n"
    )
    actor = programs.launch([sys.executable, str(tmp_path / "older_actor.py"), "--learner", learners.addresses["clear"]])
    assert exit_code(actor) == 2
    assert "FAILED_PRECONDITION: protocol_version: expected 1, came 7" in programs.text(actor)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("nowhere.invalid:50051", "no answer from nowhere.invalid:50051 for 0 s: the name nowhere.invalid does not resolve"),
        ("127.0.0.1:1", "no answer from 127.0.0.1:1 for 0 s: nothing listens on port 1 of 127.0.0.1: is the learner up?"),
    ],
)
def test_an_actor_for_which_waiting_may_help_waits_and_says_for_what(address: str, said: str, tmp_path: Path) -> None:
    programs = Programs(tmp_path)
    actor = programs.actor(address)
    programs.wait_until(lambda: said in programs.text(actor), actor)
    actor.send_signal(signal.SIGTERM)
    assert exit_code(actor) == 0


def test_a_learner_whose_port_is_taken_exits_2(learners: Learners, tmp_path: Path) -> None:
    programs = Programs(tmp_path)
    taken = learners.addresses["clear"].replace("localhost", "127.0.0.1")
    learner = programs.learner(tmp_path / "run", "--listen", taken)
    assert exit_code(learner) == 2
    assert f"impala-learner: listen: cannot listen on {taken}" in programs.text(learner)


def test_an_actor_without_the_environments_package_exits_2(tmp_path: Path) -> None:
    """As in an image that was built without an extra: only the learner's machine has the module."""
    (tmp_path / "only_here.py").write_text(
        "import gymnasium\ngymnasium.register('Mine-v0', 'gymnasium.envs.classic_control.cartpole:CartPoleEnv')\n"
    )
    programs = Programs(tmp_path)
    learner = programs.start(
        "learner_server",
        *("--env", "only_here:Mine-v0", "--allow-module", "only_here", "--run-dir", str(tmp_path / "run")),
        environment={"PYTHONPATH": str(tmp_path)},
    )
    actor = programs.actor(programs.address(learner), "--allow-module", "only_here")
    assert exit_code(actor) == 2
    assert "environment: cannot make 'only_here:Mine-v0'" in programs.text(actor)
    assert "No module named 'only_here'" in programs.text(actor)
    learner.send_signal(signal.SIGTERM)
    assert exit_code(learner) == 0


class Tap:
    """A port that passes everything on to a learner and keeps a copy: what somebody on the way sees."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._learner = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"localhost:{self._listener.getsockname()[1]}"
        self.seen = bytearray()
        self._threads = [threading.Thread(target=self._accept, name="tap", daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(self._learner)
            for source, sink in ((near, far), (far, near)):
                thread = threading.Thread(target=self._copy, args=(source, sink), name="tap-copy", daemon=True)
                thread.start()
                self._threads.append(thread)

    def _copy(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while chunk := source.recv(65_536):
                self.seen += chunk
                sink.sendall(chunk)
        except OSError:
            pass
        finally:
            for end in (source, sink):
                end.close()

    def close(self) -> None:
        # Unlike close alone, this wakes the thread that accepts.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(10.0)


@pytest.mark.parametrize(("learner", "readable"), [("clear", True), ("good", False)])
def test_over_tls_neither_token_nor_observations_can_be_read_on_the_way(
    learner: str, readable: bool, learners: Learners, tmp_path: Path
) -> None:
    run_dir = learners.files.folder / learner
    programs = Programs(tmp_path)
    with closing(Tap(learners.addresses[learner])) as tap:
        actor = programs.actor(tap.address, *learners.flags(ca=None if readable else "own"))
        before = last(run_dir)["env_steps"]
        programs.wait_until(lambda: last(run_dir)["env_steps"] > before + 10_000, actor)
        actor.send_signal(signal.SIGTERM)
        assert exit_code(actor) == 0
    assert len(tap.seen) > 100_000
    # The name of the observation's tensor stands before its bytes in every unroll.
    for secret in (TOKEN.encode(), b"observation", b"CartPole-v1"):
        assert (secret in tap.seen) == readable, secret
