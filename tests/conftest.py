"""What holds for all tests."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.programs import Programs

# As the programs do: two threads that wait for each other on a busy machine make steps of microseconds take seconds.
torch.set_num_threads(1)


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[Programs]:
    """Starts programs, and ends those that a test leaves running."""
    programs = Programs(tmp_path)
    yield programs
    programs.end()


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The axes of whatever is drawn during the test."""
    from matplotlib.figure import Figure  # late: few tests draw

    axes: list[Any] = []
    savefig = Figure.savefig

    def noting(figure: Figure, *arguments: Any, **keywords: Any) -> None:
        axes.extend(figure.axes)
        savefig(figure, *arguments, **keywords)

    monkeypatch.setattr(Figure, "savefig", noting)
    return axes
