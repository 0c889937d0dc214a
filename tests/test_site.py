"""The site of `make docs`: what is checked of it once it is built, and how docstrings come into it."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

SITE = Path(__file__).resolve().parent.parent / "docs" / "site"

GOOD = {
    "index.html": '<a href="docs/a.html#one">one</a> <a href="https://far.example/">far</a> <img src="data:image/png,">',
    "docs/a.html": '<link href="../style.css"> <h1 id="one">One</h1> <a href="../index.html">back</a> <a href="#one">here</a>',
    "style.css": "",
}


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, SITE / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return folder


def test_a_site_without_faults_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert load("check").main(write(tmp_path, GOOD)) == 0
    assert capsys.readouterr().out == "2 pages, no dead link, nothing loaded from elsewhere\n"


@pytest.mark.parametrize(
    ("added", "fault"),
    [
        ('<a href="docs/b.html">b</a>', "no file for docs/b.html"),
        ('<a href="docs/a.html#two">two</a>', "no place for docs/a.html#two"),
        ('<a href="#three">three</a>', "no place for #three"),
        ('<img src="docs/a.png">', "no file for docs/a.png"),
        ('<script src="https://elsewhere.example/a.js"></script>', "loads https://elsewhere.example/a.js"),
        ('<img src="//elsewhere.example/a.png">', "loads //elsewhere.example/a.png"),
    ],
)
def test_what_leads_nowhere_and_what_comes_from_elsewhere_is_named(
    added: str, fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert load("check").main(write(tmp_path, GOOD | {"index.html": GOOD["index.html"] + added})) == 1
    assert capsys.readouterr().out == f"index.html: {fault}\n"


def test_a_folder_without_pages_is_no_site(tmp_path: Path) -> None:
    assert load("check").main(tmp_path) == 1


def test_docstrings_mean_nothing_but_their_backticks_and_sections() -> None:
    docstring = [
        "Returns |a * b|, [*leading], of `x * y` and lambda_.",
        "",
        "With these, backwards:",
        "",
        "    v_t = V(x_t) * |c|",
        "",
        "Args:",
        "    x: [*] what.",
    ]
    assert load("plain_docstrings").plain(docstring) == [
        r"Returns \|a \* b\|, [\*leading], of `x * y` and lambda\_.",
        "",
        "With these, backwards::",
        "",
        "    v_t = V(x_t) * |c|",
        "",
        "Args:",
        r"    x: [\*] what.",
    ]
