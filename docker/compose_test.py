"""`make compose-test`: docker compose as its users use it, on a real engine. Needs Python alone, and leaves nothing running.

Prints what it measured as JSON; exit code 1 at the first thing that is not as it should be.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PATIENCE_SECONDS = 180.0
# Long enough to scale, kill and restart in: a run is over only when the return still holds after so many more steps.
LONG = "--settle-steps 3000000"


class Project:
    """One compose project, in a run folder of its own."""

    def __init__(self, runs: Path, *, run: str, flags: str = "") -> None:
        self.run_dir = runs / run
        self._environment = os.environ | {
            "COMPOSE_PROJECT_NAME": "impala-compose-test",
            "IMPALA_RUNS": str(runs),
            "IMPALA_RUN": run,
            "IMPALA_FLAGS": f"--total-steps 10000000 {flags}",
        }

    def compose(self, *arguments: str) -> str:
        """Returns what `docker compose` prints; its failure is ours."""
        return self._run("docker", "compose", *arguments)

    def containers(self, service: str) -> list[str]:
        return self.compose("ps", "-q", service).split()

    def exit_codes(self) -> dict[str, int]:
        """Returns the exit codes of the project's containers that have ended."""
        found = {}
        for container in self.compose("ps", "-a", "-q").split():
            state = json.loads(self._run("docker", "inspect", container))[0]
            if state["State"]["Status"] == "exited":
                found[state["Name"].strip("/")] = state["State"]["ExitCode"]
        return found

    def health(self, container: str) -> str:
        return str(json.loads(self._run("docker", "inspect", container))[0]["State"]["Health"]["Status"])

    def lines(self) -> list[dict[str, Any]]:
        """Returns the whole lines of metrics, read here and not in the container."""
        path = self.run_dir / "metrics.jsonl"
        return (
            [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
            if path.exists()
            else []
        )

    def last(self) -> dict[str, Any]:
        """Returns the newest line of metrics."""
        return (self.lines() or [{}])[-1]

    def goes_on(self) -> bool:
        """Returns whether there were updates since a learner was stopped in good order."""
        stopped = [line["learner_updates"] for line in self.lines() if line.get("ended") == "stopped"]
        return bool(stopped) and self.last()["learner_updates"] > stopped[-1]

    def _run(self, *command: str) -> str:
        done = subprocess.run(command, cwd=ROOT, env=self._environment, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
        return done.stdout


def wait(what: str, condition: Callable[[], bool]) -> None:
    """Returns once the condition holds; gives up on it after PATIENCE_SECONDS."""
    begin = time.monotonic()
    while not condition():
        if time.monotonic() - begin > PATIENCE_SECONDS:
            sys.exit(f"{what}: not within {PATIENCE_SECONDS:.0f} s")
        time.sleep(0.25)
    print(f"{what}: after {time.monotonic() - begin:.1f} s", flush=True)


def trains_until_solved(runs: Path) -> dict[str, Any]:
    """`docker compose up`, in the foreground, from nothing to its end."""
    project = Project(runs, run="plain")
    try:
        begin = time.monotonic()
        project.compose("up")
        last = project.last()
        expect("docker compose up ended with the run solved", last.get("ended") == "solved")
        expect("every container ended with 0", set(project.exit_codes().values()) == {0})
        project.compose("down")
        expect("the run directory outlives down, and is readable here", (project.run_dir / "curve.png").stat().st_size > 0)
        return {"up_seconds": round(time.monotonic() - begin, 1), "seconds": last["seconds"], "env_steps": last["env_steps"]}
    finally:
        project.compose("down", "--volumes")


def survives(runs: Path) -> dict[str, Any]:
    """Scales up in mid-run, kills an actor and restarts the learner: the run is solved all the same."""
    project = Project(runs, run="survives", flags=LONG)
    try:
        project.compose("up", "-d")
        wait("two actors", lambda: project.last().get("actors") == 2)
        learner, actor = project.containers("learner")[0], project.containers("actor")[0]
        wait("learner and actors are healthy", lambda: project.health(learner) == project.health(actor) == "healthy")
        project.compose("up", "-d", "--no-recreate", "--scale", "actor=4")
        wait("four actors after scaling", lambda: project.last().get("actors") == 4)
        project._run("docker", "kill", actor)
        wait("three actors after one was killed", lambda: project.last().get("actors") == 3)
        begin = time.monotonic()
        project.compose("restart", "learner")
        wait("training goes on after the learner's restart", project.goes_on)
        recovery = time.monotonic() - begin
        wait("the run is over", lambda: project.last().get("ended") == "solved")
        wait("all have ended", lambda: len(project.exit_codes()) == len(project.compose("ps", "-a", "-q").split()))
        codes = project.exit_codes()
        expect("all but the killed one ended with 0", sorted(codes.values()) == [0] * (len(codes) - 1) + [137])
        return {"restart_seconds": round(recovery, 1), "env_steps": project.last()["env_steps"]}
    finally:
        project.compose("down", "--volumes")


def expect(what: str, holds: bool) -> None:
    """Says what holds, or ends with code 1."""
    if not holds:
        sys.exit(f"not so: {what}")
    print(what, flush=True)


def main() -> None:
    """Runs everything, and prints what it measured."""
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder)
        builder = Project(runs, run="none")
        builder.compose("build", "--quiet")
        # What is measured, to docs/deploy.md by hand: it is of one machine and one day.
        measured = {"up": trains_until_solved(runs), "survives": survives(runs)}
        for image in ("impala-learner", "impala-actor"):
            measured[image] = {"MB": round(json.loads(builder._run("docker", "image", "inspect", image))[0]["Size"] / 1e6)}
        print(json.dumps(measured, indent=1))


if __name__ == "__main__":
    main()
