"""docs/primer.md says what the code does: formulas, functions and tests name each other, and its blocks run as they stand."""

import ast
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PRIMER = ROOT / "docs" / "primer.md"
DOCUMENTS = ["docs/primer.md", "README.md", "examples/README.md"]
CODE = [path for folder in ("impala", "examples", "learner_server", "actor_client") for path in (ROOT / folder).rglob("*.py")]

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SECTION_IN_CODE = re.compile(r"docs/primer\.md,\s+section\s+(\d+(?:\.\d+)?)")
_MARK = "---- the block above printed this ----"


def sections() -> dict[str, str]:
    """Returns number to text, of a section without those below it."""
    parts = re.split(r"^##+ (\d+(?:\.\d+)?)\.? .*$", PRIMER.read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def formulas() -> list[tuple[str, str, list[str], list[str]]]:
    """Returns section, number, dotted functions and tests of every numbered formula."""
    found = []
    for section, text in sections().items():
        for number, after in re.findall(r"\\tag\{(\d+)\}\n\$\$\n\n(.*?)(?:\n\n|\Z)", text, re.DOTALL):
            code, _, checks = after.partition("Checked by:")
            assert code.startswith("- In code:"), (number, after)
            functions = re.findall(r"`((?:impala|examples)(?:\.\w+)+)`", code)
            found.append((section, number, functions, re.findall(r"`(tests/[\w/]+\.py::\w+)`", checks)))
    return found


def resolve(dotted: str) -> object:
    """Returns what a dotted name, of a module and then of its attributes, stands for."""
    parts = dotted.split(".")
    for length in range(len(parts) - 1, 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for name in parts[length:]:
            found = getattr(found, name)
        return found
    raise AssertionError(f"no module of {dotted}")


def anchors(text: str) -> set[str]:
    """Returns the anchors that GitHub gives to headings."""
    headings = re.findall(r"^#+ (.*)$", _FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", re.sub(r"\]\([^)]*\)", "]", heading).lower()).replace(" ", "-") for heading in headings}


def links(document: Path) -> list[str]:
    """Returns the links of a document that lead to files or headings of the project."""
    text = _FENCE.sub("", document.read_text())
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]


def blocks(text: str) -> list[tuple[str, str | None]]:
    """Returns each block of Python and the block of text that follows it, if one does with only blank lines between."""
    fences = list(_FENCE.finditer(text))
    found = []
    for index, fence in enumerate(fences):
        if fence[1] == "python":
            following = fences[index + 1] if index + 1 < len(fences) else None
            adjacent = following and following[1] == "text" and not text[fence.end() : following.start()].strip()
            found.append((fence[2], following[2] if following and adjacent else None))
    return found


def named_sections() -> list[tuple[Path, str, str]]:
    """Returns file, name (of a function, a class, or the file itself) and section of every docstring that names one."""
    found = []
    for path in CODE:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                name = path.name if isinstance(node, ast.Module) else node.name
                found += [(path, name, section) for section in _SECTION_IN_CODE.findall(ast.get_docstring(node) or "")]
    return found


def test_formulas_are_numbered_in_order() -> None:
    assert [number for _, number, _, _ in formulas()] == [str(number) for number in range(1, len(formulas()) + 1)]
    assert len(formulas()) == PRIMER.read_text().count("\\tag{") >= 12


@pytest.mark.parametrize(("section", "number", "functions"), [formula[:3] for formula in formulas()])
def test_every_formula_names_functions_that_name_its_section(section: str, number: str, functions: list[str]) -> None:
    assert functions, number
    for dotted in functions:
        named = _SECTION_IN_CODE.findall(getattr(resolve(dotted), "__doc__", None) or "")
        assert section in named, f"{dotted} names the sections {named}, formula ({number}) is in {section}"


@pytest.mark.parametrize("test", sorted(set(re.findall(r"`(tests/[\w/]+\.py::\w+)`", PRIMER.read_text()))))
def test_every_test_that_is_named_exists(test: str) -> None:
    file, _, name = test.partition("::")
    functions = {node.name for node in ast.parse((ROOT / file).read_text()).body if isinstance(node, ast.FunctionDef)}
    assert name in functions


def test_every_formula_names_a_test() -> None:
    assert [number for _, number, _, tests in formulas() if not tests] == []


def test_every_section_that_code_names_exists_and_names_that_code() -> None:
    texts = sections()
    missing = [
        (str(path.relative_to(ROOT)), name, section)
        for path, name, section in named_sections()
        if name not in "".join(text for number, text in texts.items() if number == section or number.startswith(f"{section}."))
    ]
    assert missing == []
    assert len(named_sections()) >= 12


@pytest.mark.timeout(600)  # a few seconds, on a machine that has nothing else to do
@pytest.mark.parametrize("document", DOCUMENTS)
def test_blocks_of_python_print_what_the_text_says(document: str, tmp_path: Path) -> None:
    pairs = blocks((ROOT / document).read_text())
    script = tmp_path / "blocks.py"
    script.write_text("".join(f"{code}\nprint({_MARK!r}, flush=True)\n" for code, _ in pairs))
    run = subprocess.run(
        [sys.executable, str(script)],
        cwd=ROOT,
        # More threads than cores spin, on a machine that has other work.
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    printed = [output.rstrip() for output in run.stdout.split(_MARK + "\n")[:-1]]
    assert printed == [(expected or "").rstrip() for _, expected in pairs]


def test_the_primer_has_blocks_that_print() -> None:
    pairs = blocks(PRIMER.read_text())
    assert len(pairs) >= 6
    assert PRIMER.read_text().count("```text\n") == sum(expected is not None for _, expected in pairs)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_to_files_and_headings_that_exist(document: str) -> None:
    path, dead = ROOT / document, []
    for link in links(path):
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        if not target.exists() or (anchor and anchor not in anchors(target.read_text())):
            dead.append(link)
    assert dead == []


def test_every_command_that_the_primer_names_exists() -> None:
    modules = set(re.findall(r"python -m ([\w.]+)", PRIMER.read_text()))
    assert len(modules) >= 3
    assert [name for name in modules if not (ROOT / name.replace(".", "/")).with_suffix(".py").exists()] == []


def test_every_figure_that_the_primer_shows_is_drawn_by_make_figures() -> None:
    shown = re.findall(r"!\[[^\]]*\]\(\.\./results/([\w-]+\.svg)\)", PRIMER.read_text())
    assert len(shown) == 5
    drawn = (ROOT / "benchmarks" / "figures.py").read_text()
    assert [name for name in shown if f'"{name}"' not in drawn] == []
