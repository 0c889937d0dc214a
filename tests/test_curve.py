"""The learning curve: a picture of what the metrics say, where they say anything."""

import json
from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes
from matplotlib.image import imread

from learner_server.curve import draw_curve

LINES = [
    {"env_steps": 100, "seconds": 1.0, "mean_return_100": None},
    {"env_steps": 200, "seconds": 2.0, "mean_return_100": 20.5},
    {"env_steps": 300, "seconds": 3.0, "mean_return_100": 30.5},
]


def write_lines(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_picture_is_drawn(tmp_path: Path) -> None:
    metrics = write_lines(tmp_path / "metrics.jsonl", LINES)
    assert draw_curve(metrics, tmp_path / "curve.png", title="CartPole-v1, seed 0", target=475.0)
    image = imread(tmp_path / "curve.png")
    assert image.shape[:2] == (440, 1100)
    assert image.min() < image.max()


def test_returns_are_drawn_by_steps_and_by_seconds(tmp_path: Path, drawn: list[Axes]) -> None:
    metrics = write_lines(tmp_path / "metrics.jsonl", LINES)
    draw_curve(metrics, tmp_path / "curve.png", title="", target=None)
    lines = {axes.get_xlabel(): [list(data) for data in axes.get_lines()[0].get_data()] for axes in drawn}
    assert lines == {"agent steps": [[200, 300], [20.5, 30.5]], "seconds": [[2.0, 3.0], [20.5, 30.5]]}


@pytest.mark.parametrize(("target", "drawn_at"), [(475.0, [475.0, 475.0]), (None, [])])
def test_the_target_is_a_line_where_there_is_one(
    tmp_path: Path, drawn: list[Axes], target: float | None, drawn_at: list[float]
) -> None:
    metrics = write_lines(tmp_path / "metrics.jsonl", LINES)
    draw_curve(metrics, tmp_path / "curve.png", title="", target=target)
    assert [axes.get_lines()[1].get_ydata()[0] for axes in drawn if len(axes.get_lines()) > 1] == drawn_at


def test_a_single_point_is_drawn(tmp_path: Path) -> None:
    metrics = write_lines(tmp_path / "metrics.jsonl", [{"env_steps": 0, "seconds": 0.0, "mean_return_100": 0.0}])
    assert draw_curve(metrics, tmp_path / "curve.png", title="", target=None)
    assert (tmp_path / "curve.png").exists()


@pytest.mark.parametrize("lines", [None, [], LINES[:1]], ids=["no file", "no line", "no return"])
def test_where_there_is_nothing_to_draw_there_is_no_picture(tmp_path: Path, lines: list[dict[str, Any]] | None) -> None:
    if lines is not None:
        write_lines(tmp_path / "metrics.jsonl", lines)
    assert not draw_curve(tmp_path / "metrics.jsonl", tmp_path / "curve.png", title="", target=475.0)
    assert not (tmp_path / "curve.png").exists()


def test_a_new_picture_replaces_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "curve.png").write_bytes(b"old")
    metrics = write_lines(tmp_path / "metrics.jsonl", LINES)
    draw_curve(metrics, tmp_path / "curve.png", title="", target=None)
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_of_a_run_of_weeks_some_points_are_drawn_the_last_among_them(tmp_path: Path, drawn: list[Axes]) -> None:
    lines = [{"env_steps": step, "seconds": 0.5 * step, "mean_return_100": float(step)} for step in range(9002)]
    draw_curve(write_lines(tmp_path / "metrics.jsonl", lines), tmp_path / "curve.png", title="", target=None)
    steps = list(drawn[0].get_lines()[0].get_xdata())
    assert 2000 < len(steps) <= 4001
    assert (steps[0], steps[-1]) == (0, 9001)
