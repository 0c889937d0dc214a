"""No source file of the project runs data as code: no pickle, no eval, no shell (decision 6), wherever in the tree it lies."""

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Modules whose reading of bytes may run what those say.
_UNPICKLERS = frozenset({"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "jsonpickle", "marshal", "shelve"})
# torch.save pickles.
_RUNNERS = frozenset({"eval", "exec", "compile", "__import__", "torch.save"})
# Calls by which a command line reaches a shell, and readers that take pickles unless told otherwise.
_SHELLS = frozenset(
    {"os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "asyncio.create_subprocess_shell"}
)
_SAFE_ONLY_WITH = {"torch.load": ("weights_only", "True"), "yaml.load": ("Loader", "yaml.SafeLoader")}


def findings(source: str) -> list[str]:
    """Returns what in a source file could run data, each with its line."""
    return [f"{node.lineno}: {found}" for node in ast.walk(ast.parse(source)) for found in _of(node)]  # type: ignore[attr-defined]


def _of(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names if alias.name.partition(".")[0] in _UNPICKLERS)
    elif isinstance(node, ast.ImportFrom):
        names = {(node.module or "").partition(".")[0], *(f"{node.module}.{alias.name}" for alias in node.names)}
        yield from names & (_UNPICKLERS | _RUNNERS | _SHELLS | _SAFE_ONLY_WITH.keys())
    elif isinstance(node, ast.Call):
        name = ast.unparse(node.func)
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if name in _RUNNERS | _SHELLS:
            yield name
        if given.get("shell", "False") != "False":
            yield f"{name} with a shell"
        if given.get("allow_pickle", "False") != "False":
            yield f"{name} with pickles"
        if name in _SAFE_ONLY_WITH:
            argument, value = _SAFE_ONLY_WITH[name]
            if given.get(argument) != value:
                yield f"{name} without {argument}={value}"


def test_no_source_file_runs_data_as_code() -> None:
    # Tests show what comes of pickles, and run the examples that the documents print.
    paths = [path for path in _python_files() if "tests" not in path.parts]
    assert len(paths) > 30
    found = {str(path): findings((ROOT / path).read_text()) for path in paths}
    assert {path: lines for path, lines in found.items() if lines} == {}


def _python_files() -> list[Path]:
    """Returns what git tracks, or would track; a copy without a repository (see tests/mutants.py) holds nothing else."""
    if not (ROOT / ".git").exists():
        paths = (path.relative_to(ROOT) for path in ROOT.rglob("*.py"))
        return [path for path in paths if not path.parts[0].startswith(".")]
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return [Path(name) for name in listing.stdout.splitlines() if (ROOT / name).is_file()]


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import os, dill",
        "from cloudpickle import loads",
        "from torch import load",
        "from os import system",
        "torch.save(tensors, path)",
        "def f():\n    import marshal",
        "eval('1')",
        "exec(text)",
        "compile(text, 'x', 'exec')",
        "subprocess.run('ls', shell=True)",
        "subprocess.Popen(command, shell=wanted)",
        "os.system('ls')",
        "numpy.load(path, allow_pickle=True)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "yaml.load(text)",
    ],
)
def test_what_would_run_data_is_found(source: str) -> None:
    assert len(findings(source)) == 1


@pytest.mark.parametrize(
    "source",
    [
        "network.eval()",
        "re.compile('x')",
        "network.compile(dynamic=False)",
        "subprocess.run(['ls'], shell=False)",
        "torch.load(path, weights_only=True)",
        "json.loads(text)",
    ],
)
def test_what_only_looks_like_it_is_not(source: str) -> None:
    assert findings(source) == []
