"""Who may import whom (docs/architecture.md): stated once, here, and held against every import in the project."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"actor_client", "impala", "learner_server", "protos", "run_directory"}

# The only modules that know the messages. `protos` itself is generated.
IMPORTERS_OF_PROTOS = {
    "learner_server/servicer.py",
    "learner_server/server.py",
    "actor_client/client.py",
    "actor_client/connection.py",
}


def imports_of(path: Path) -> set[str]:
    """Returns the dotted names that a source file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(), filename=str(path))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            assert node.module is not None
            names.add(node.module)
    return names


def importers(top: str, *, within: str) -> set[str]:
    """Returns the files of a package that import `top` or anything below it."""
    return {name for name, imports in _files(within) if top in {imported.partition(".")[0] for imported in imports}}


def _files(package: str) -> Iterator[tuple[str, set[str]]]:
    paths = sorted((ROOT / package).rglob("*.py"))
    assert paths, f"no package {package}"
    for path in paths:
        yield path.relative_to(ROOT).as_posix(), imports_of(path)


def test_the_learner_does_not_import_the_actor() -> None:
    assert importers("actor_client", within="learner_server") == set()


def test_the_actor_does_not_import_the_learner() -> None:
    assert importers("learner_server", within="actor_client") == set()


def test_the_algorithm_imports_no_other_package_but_the_wire_protos() -> None:
    for package in PACKAGES - {"impala", "protos"}:
        assert importers(package, within="impala") == set()


def test_the_algorithm_imports_no_grpc() -> None:
    assert importers("grpc", within="impala") | importers("grpc_health", within="impala") == set()


def test_only_the_wire_the_servicer_and_the_client_know_the_messages() -> None:
    found = {name for package in PACKAGES - {"protos"} for name in importers("protos", within=package)}
    assert {name for name in found if not name.startswith("impala/wire/")} == IMPORTERS_OF_PROTOS


def test_only_the_environments_package_imports_gymnasium() -> None:
    found = {name for package in PACKAGES for name in importers("gymnasium", within=package)}
    assert found
    assert {name for name in found if not name.startswith("impala/environments/")} == set()


def test_the_run_directory_imports_neither_learner_nor_actor() -> None:
    assert importers("learner_server", within="run_directory") | importers("actor_client", within="run_directory") == set()
