"""The commands of the README, the primer and the recipes run as they stand there, cut short; what they show is what is printed."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.programs import ENDLESS, Programs, exit_code, last

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ("README.md", "docs/primer.md", "examples/README.md")
BIN = Path(sys.executable).parent

# Beginnings of every command in the documents; each is run by a test below.
EVALUATE = "impala-evaluate --run-dir"
ACROBOT = "impala-learner --env Acrobot-v1"
SEAQUEST = "impala-learner --preset minatar --env MinAtar/Seaquest-v1"
CERTS = "impala-certs --hosts"
LEARNER = "impala-learner --env CartPole-v1 --listen 0.0.0.0"
ACTOR = "impala-actor --learner"
MINIMAL = "python examples/minimal_impala.py"
ENVIRONMENT = "PYTHONPATH=examples impala-learner --env custom_environment"
NETWORK = "PYTHONPATH=examples impala-learner --env CartPole-v1 --network custom_network"
LOSS = "python -m examples.custom_loss"
ANY_LEARNER = "impala-learner --env CartPole-v1 --actors 0"
BARE_ACTOR = "python -m examples.bare_actor"
TRAINED = "python -m examples.trained_agent"
MAKE = {"make train": "impala-learner --preset cartpole --actors 2", "make test": "python -m pytest"}
COMMANDS = {
    *MAKE, EVALUATE, ACROBOT, SEAQUEST, CERTS, LEARNER, ACTOR, MINIMAL, ENVIRONMENT, NETWORK, LOSS, ANY_LEARNER, BARE_ACTOR,
    TRAINED,
}  # fmt: skip


def fences(document: str) -> list[tuple[str, str]]:
    """Returns the language and the text of each block of a document."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / document).read_text(), re.MULTILINE | re.DOTALL)


def in_language(document: str, wanted: str) -> list[str]:
    return [text for language, text in fences(document) if language == wanted]


def commands() -> list[str]:
    """Returns the commands of all documents, each on one line and without its comment."""
    lines = "".join(block for document in DOCUMENTS for block in in_language(document, "sh")).replace("\\\n", " ").splitlines()
    return [" ".join(line.partition("#")[0].split()).removeprefix(".venv/bin/") for line in lines]


def command(begin: str, **replace: str) -> tuple[list[str], dict[str, str]]:
    """Returns one command as a program of this environment with its arguments, and the variables that it sets."""
    (line,) = (line for line in commands() if line.startswith(begin))
    for before, after in replace.items():
        assert before in line, line
        line = line.replace(before, after)
    words = shlex.split(line)
    environment = dict(word.split("=", 1) for word in words if re.match(r"[A-Z]+=", word))
    words = words[len(environment) :]
    return [str(BIN / words[0]), *words[1:]], environment


def shape(line: str) -> str:
    """Returns a line of a program's output without what differs between runs."""
    line = re.sub(r"^\d\d:\d\d:\d\d", "", line)
    line = re.sub(r"\S*/(CartPole-v1-seed[\w-]+|rundir)", "RUN", line)
    line = re.sub(r"limit [a-z ]+$", "limit LIMIT", line.rstrip())
    line = re.sub(r"from \S+ \(ipv4:\S+\)", "from HOST", line)
    line = re.sub(r"(?<![\w-])(-?[\d,]+(\.\d+)?(:\d+)?|-)(?![\w-])", "N", line)
    return " ".join(line.split())


def test_each_command_of_the_documents_is_run_by_a_test() -> None:
    unknown = [line for line in commands() if not any(line.startswith(begin) for begin in COMMANDS)]
    assert unknown == []
    assert [begin for begin in COMMANDS if not any(line.startswith(begin) for line in commands())] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_each_block_says_what_it_is(document: str) -> None:
    blocks = [(language, "a diagram" if "▶" in text else text) for language, text in fences(document)]
    assert [block for block in blocks if block[0] not in {"python", "text", "sh"} and block != ("", "a diagram")] == []


@pytest.mark.parametrize(("begin", "runs"), MAKE.items())
def test_make_runs_what_it_says(begin: str, runs: str) -> None:
    assert begin in commands()
    # By itself, though make may run these tests: it would say which folder it enters and leaves.
    command = ["make", "--dry-run", "--no-print-directory", *begin.split()[1:]]
    output = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert output.splitlines()[-1] == f".venv/bin/{runs}"


@pytest.mark.system
@pytest.mark.timeout(600)
def test_a_run_prints_what_the_readme_shows_and_its_weights_play(programs: Programs, tmp_path: Path) -> None:
    run_dir = tmp_path / "rundir"
    learner = programs.launch([str(BIN / "impala-learner"), *MAKE["make train"].split()[1:], "--run-dir", str(run_dir)])
    assert learner.wait(300.0) == 0, programs.text(learner)
    (shown,) = in_language("README.md", "text")
    assert {shape(line) for line in programs.text(learner).splitlines()} == {shape(line) for line in shown.splitlines()}
    arguments, _ = command(EVALUATE, **{"runs/CartPole-v1-seed0-...": str(run_dir)})
    evaluation = programs.launch(arguments)
    assert evaluation.wait(300.0) == 0, programs.text(evaluation)
    assert "over 100 episodes" in programs.text(evaluation)
    arguments, _ = command(TRAINED, **{"runs/CartPole-v1-seed0-...": str(run_dir)})
    played = programs.launch(arguments)
    assert played.wait(300.0) == 0, programs.text(played)
    returns = [float(each) for each in re.findall(r"^episode \d: return (\d+)$", programs.text(played), re.MULTILINE)]
    assert len(returns) == 3
    assert min(returns) > 300.0


@pytest.mark.system
@pytest.mark.timeout(300)
def test_an_environment_or_a_network_by_its_name_trains(programs: Programs, tmp_path: Path) -> None:
    short = ["--total-steps", "2000", "--stop-at-return", "None"]
    learners = {}
    for number, begin in enumerate((ACROBOT, SEAQUEST, ENVIRONMENT, NETWORK)):
        arguments, environment = command(begin)
        run_dir = tmp_path / f"{number}"
        learners[run_dir] = programs.launch([*arguments, *short, "--run-dir", str(run_dir)], environment=environment)
    for run_dir, learner in learners.items():
        assert learner.wait(240.0) == 0, programs.text(learner)
        assert last(run_dir)["env_steps"] >= 2000


@pytest.mark.system
@pytest.mark.timeout(300)
def test_an_actor_on_another_machine_comes_with_token_and_certificate(
    programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    there = {"learner.example": "localhost"}
    arguments, _ = command(CERTS, **there)
    assert exit_code(programs.launch(arguments)) == 0
    arguments, _ = command(LEARNER, **{"0.0.0.0:50051": "0.0.0.0:0"})
    learner = programs.launch([*arguments, *ENDLESS, "--run-dir", "run"])
    port = programs.address(learner).rpartition(":")[2]
    for name in ("token", "ca.pem"):
        shutil.copy(tmp_path / "certs" / name, tmp_path)
    arguments, _ = command(ACTOR, **there, **{"50051": port})
    actor = programs.launch(arguments)
    programs.wait_until(lambda: last(tmp_path / "run")["env_steps"] > 0, learner, actor)


@pytest.mark.system
@pytest.mark.timeout(300)
def test_an_actor_in_another_language_feeds_a_learner(programs: Programs, tmp_path: Path) -> None:
    arguments, _ = command(ANY_LEARNER, **{"127.0.0.1:50051": "127.0.0.1:0", "200000": "3000"})
    learner = programs.launch([*arguments, "--run-dir", str(tmp_path / "run")])
    arguments, _ = command(BARE_ACTOR, **{"127.0.0.1:50051": programs.address(learner)})
    actor = programs.launch(arguments)
    assert (learner.wait(240.0), exit_code(actor)) == (0, 0), programs.text(actor)
    assert last(tmp_path / "run")["log_rho_abs_lag_0"] < 1e-4


@pytest.mark.system
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("begin", "updates", "code", "says"), [(MINIMAL, "100", 1, "update   100 "), (LOSS, "3", 0, "mean return")]
)
def test_a_script_trains(begin: str, updates: str, code: int, says: str, programs: Programs) -> None:
    arguments, _ = command(begin)
    script = programs.launch([*arguments, "--updates", updates])
    assert script.wait(240.0) == code, programs.text(script)
    assert says in programs.text(script)
