"""Proves that every test can fail: breaks the line that it guards, and sees it fail.

    python -m tests.mutants                  every mutant (several minutes)
    python -m tests.mutants vtrace           those of one file
    python -m tests.mutants --list           tests that no mutant names, mutants that have lost their line; code 1 if there are any

`tests/mutations/*.toml` hold the mutants: a file of the project, a text that stands in it exactly once, what to put in its
place, and the tests that must then fail:

    [[mutant]]
    file = "impala/vtrace.py"
    before = "error = torch.zeros_like(deltas[0])"
    after = "error = torch.ones_like(deltas[0])"
    tests = ["tests/test_vtrace.py::test_equals_the_literal_sum"]

Each mutant lives in a copy of the tracked and untracked-not-ignored files, in a temporary folder.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def load_mutants(only: str) -> list[dict[str, Any]]:
    """Returns the mutants of every file whose name contains `only`."""
    mutants: list[dict[str, Any]] = []
    for path in sorted((ROOT / "tests" / "mutations").glob("*.toml")):
        if only in path.stem:
            mutants += tomllib.loads(path.read_text())["mutant"]
    return mutants


def copy_project(to: Path) -> None:
    """Copies what git tracks, or would track."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"], cwd=ROOT, stdout=subprocess.PIPE, check=True
    )
    for name in listing.stdout.decode().split("\0"):
        if name and (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)


def survivors(project: Path, mutant: dict[str, Any]) -> list[str]:
    """Returns the named tests that pass although the line they guard is broken; the project is as before afterwards."""
    path = project / mutant["file"]
    original = path.read_text()
    if original.count(mutant["before"]) != 1:
        return [f"{mutant['file']}: {original.count(mutant['before'])} places with {mutant['before']!r}, expected 1"]
    path.write_text(original.replace(mutant["before"], mutant["after"]))
    try:
        run = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", "--no-header", *mutant["tests"]],
            cwd=project,
            env={**os.environ, "PYTHONPATH": str(project), "PYTHONDONTWRITEBYTECODE": "1"},
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
    finally:
        path.write_text(original)
    if run.returncode not in (0, 1, 2):
        return [f"{mutant['tests']}: pytest ended with code {run.returncode}"]
    if run.returncode == 2:  # the mutant does not even import: every test of the file fails
        return []
    passed = [line.removeprefix("PASSED ") for line in run.stdout.splitlines() if line.startswith("PASSED ")]
    failed = [line.split()[1] for line in run.stdout.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    # A parametrised test has failed when one of its cases has.
    return [test for test in mutant["tests"] if not any(_belongs(name, test) for name in failed)] or ([] if failed else passed)


def _belongs(case: str, test: str) -> bool:
    return case == test or case.startswith((f"{test}[", f"{test}::"))


def misplaced(mutants: list[dict[str, Any]]) -> list[str]:
    """Returns a line for every mutant whose text does not stand exactly once in its file."""
    counts = [(mutant, (ROOT / mutant["file"]).read_text().count(mutant["before"])) for mutant in mutants]
    return [f"{mutant['file']}: {count} places with {mutant['before']!r}, expected 1" for mutant, count in counts if count != 1]


def unguarded(mutants: list[dict[str, Any]]) -> list[str]:
    """Returns the collected tests that no mutant names."""
    collected = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "tests"], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    ).stdout.splitlines()
    tests = {line.partition("[")[0] for line in collected if "::" in line}
    named = {test.partition("[")[0] for mutant in mutants for test in mutant["tests"]}
    return sorted(tests - named)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("only", nargs="?", default="", help="part of the name of a file of mutants")
    parser.add_argument("--list", action="store_true", help="only list the tests that no mutant names")
    arguments = parser.parse_args()
    mutants = load_mutants(arguments.only)
    if arguments.list:
        faults = misplaced(mutants) + unguarded(mutants)
        print("\n".join(faults) or f"every test is named by one of {len(mutants)} mutants")
        sys.exit(1 if faults else 0)
    alive = 0
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder)
        copy_project(project)
        for mutant in mutants:
            names = survivors(project, mutant)
            alive += bool(names)
            verdict = f"SURVIVED {names}" if names else "killed"
            print(f"{verdict}: {mutant['file']}: {mutant['before'].strip().splitlines()[0]!r}", flush=True)
    print(f"{len(mutants) - alive} killed, {alive} survived")
    sys.exit(1 if alive else 0)


if __name__ == "__main__":
    main()
