"""impala-curves: what is in the pictures, and what a wrong command line is told."""

import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.image import imread

from impala.config import LossConfig
from run_directory import curves
from run_directory.comparison import group_runs, read_run
from run_directory.curves import CurvesConfig, compare, main
from run_directory.drawing import draw
from tests.run_directories import Row, write_run

TWO = ("CartPole-v1", "Acrobot-v1")


def straight(slope: float, *, end: int = 100) -> list[Row]:
    return [(steps, steps / 10, [slope * steps]) for steps in (0, end // 2, end)]


def legend(axes: Axes) -> list[str]:
    return axes.get_legend_handles_labels()[1]


def look(*runs: Path) -> list[str]:
    """Draws runs; returns what the picture cannot show."""
    return draw(group_runs([read_run(run) for run in runs]), "svg")[1]


def test_one_seed_is_a_line_by_steps_and_by_seconds(tmp_path: Path, drawn: list[Axes]) -> None:
    assert look(write_run(tmp_path / "run", straight(2.0))) == []
    lines = {axes.get_xlabel(): [list(data) for data in axes.lines[0].get_data()] for axes in drawn}
    assert lines == {"agent steps": [[0, 50, 100], [0, 100, 200]], "seconds": [[0, 5, 10], [0, 100, 200]]}
    assert [(len(axes.lines), len(axes.collections)) for axes in drawn] == [(1, 0), (1, 0)]
    assert legend(drawn[0]) == ["CartPole-v1 (1 seed)"]


def test_several_seeds_are_a_mean_with_a_band_over_their_own_lines(tmp_path: Path, drawn: list[Axes]) -> None:
    runs = [write_run(tmp_path / str(seed), straight(seed, end=100 * seed), seed=seed) for seed in (1, 2, 3)]
    look(*runs)
    *thin, mean = drawn[0].lines
    assert [line.get_xdata()[-1] for line in thin] == [100, 200, 300]
    np.testing.assert_allclose(mean.get_ydata(), 2 * mean.get_xdata())
    assert mean.get_xdata()[-1] == 100
    (band,) = drawn[0].collections
    highest = band.get_paths()[0].vertices[:, 1].max()
    assert highest == pytest.approx(200 + 4.302653 * 100 / np.sqrt(3))
    assert legend(drawn[0]) == ["CartPole-v1 (3 seeds)"]


def test_the_frame_is_that_of_the_lines_whatever_the_band(tmp_path: Path, drawn: list[Axes]) -> None:
    look(*(write_run(tmp_path / str(seed), straight(seed), seed=seed) for seed in (1, 2)))
    assert drawn[0].get_ylim() == (-10.0, 210.0)


def test_groups_differ_in_colour_and_in_dashes(tmp_path: Path, drawn: list[Axes]) -> None:
    look(*(write_run(tmp_path / str(rate), loss=LossConfig(discount=rate)) for rate in (0.9, 0.95, 0.99)))
    styles = [(line.get_color(), str(line.get_linestyle()), line._dash_pattern) for line in drawn[0].lines]  # type: ignore[attr-defined]
    assert len({colour for colour, _, _ in styles}) == len({str(dashes) for _, *dashes in styles}) == 3


def test_each_task_is_a_line(tmp_path: Path, drawn: list[Axes]) -> None:
    look(write_run(tmp_path / "run", [(0, 0.0, [1.0, 2.0]), (10, 1.0, [3.0, 4.0])], env=TWO))
    assert legend(drawn[0]) == ["CartPole-v1 (1 seed)", "Acrobot-v1 (1 seed)"]
    assert [line.get_ydata().tolist() for line in drawn[0].lines] == [[1.0, 3.0], [2.0, 4.0]]


def test_of_groups_with_several_tasks_colour_is_the_group_and_dashes_are_the_task(tmp_path: Path, drawn: list[Axes]) -> None:
    rows: list[Row] = [(0, 0.0, [1.0, 2.0]), (10, 1.0, [3.0, 4.0])]
    look(*(write_run(tmp_path / str(rate), rows, env=TWO, loss=LossConfig(discount=rate)) for rate in (0.9, 0.99)))
    assert legend(drawn[0])[:2] == ["discount 0.9: CartPole-v1 (1 seed)", "discount 0.9: Acrobot-v1 (1 seed)"]
    a, b, c, d = ((line.get_color(), line._dash_pattern) for line in drawn[0].lines)  # type: ignore[attr-defined]
    assert (a[0], c[0], a[1], b[1]) == (b[0], d[0], c[1], d[1])
    assert a[0] != c[0]
    assert a[1] != b[1]


def test_a_task_without_returns_is_left_out_and_said(tmp_path: Path, drawn: list[Axes]) -> None:
    notes = look(write_run(tmp_path / "run", [(10, 1.0, [3.0, None])], env=TWO))
    assert notes == [f"{tmp_path / 'run'}: Acrobot-v1 has no mean return yet: it wants 100 finished episodes"]
    assert legend(drawn[0]) == ["CartPole-v1 (1 seed)"]


def test_where_seeds_have_no_place_in_common_there_is_no_mean_and_it_is_said(tmp_path: Path, drawn: list[Axes]) -> None:
    late: list[Row] = [(10, 100.0, [1.0]), (90, 200.0, [2.0])]
    notes = look(write_run(tmp_path / "a", straight(1.0), seed=0), write_run(tmp_path / "b", late, seed=1))
    assert notes == ["CartPole-v1 (2 seeds): no mean by seconds: one run ends before another has a mean return"]
    assert [len(axes.lines[-1].get_xdata()) > 0 for axes in drawn] == [True, False]


def test_steps_that_are_several_frames_say_so(tmp_path: Path, drawn: list[Axes]) -> None:
    look(write_run(tmp_path / "run", env=("ALE/Pong-v5",)))
    assert drawn[0].get_xlabel() == "agent steps of 4 frames each"


def test_a_name_without_an_ending_is_both_pictures(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    compare(CurvesConfig(runs=(run,), output=tmp_path / "picture"))
    assert imread(tmp_path / "picture.png").shape[:2] == (630, 1500)
    assert (tmp_path / "picture.svg").read_text().startswith("<?xml")


@pytest.mark.parametrize("form", ["png", "svg"])
def test_the_ending_chooses_the_form(form: str, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    compare(CurvesConfig(runs=(run,), output=tmp_path / f"picture.{form}"))
    assert [path.name for path in tmp_path.glob("picture*")] == [f"picture.{form}"]


def test_equal_runs_make_equal_bytes(tmp_path: Path) -> None:
    groups = group_runs([read_run(write_run(tmp_path / "run"))])
    assert draw(groups, "svg") == draw(groups, "svg")


def test_a_group_with_a_name_is_drawn_as_one_whatever_its_runs_differ_in(tmp_path: Path, drawn: list[Axes]) -> None:
    a, b, c = (write_run(tmp_path / str(rate), loss=LossConfig(discount=rate)) for rate in (0.9, 0.95, 0.99))
    compare(CurvesConfig(runs=(c,), group=(f"low={a},{b}",), output=tmp_path / "picture.svg"))
    assert legend(drawn[0]) == ["CartPole-v1 (1 seed)", "low (2 runs)"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "runs: expected at least one run directory, came none"),
        (["--group", "a"], "group: expected NAME=RUN,RUN,..., came 'a'"),
        (["--group", "a=x,"], "group: expected NAME=RUN,RUN,..., came 'a=x,'"),
        (["run", "--output", "a.pdf"], "output: expected a name that ends in .png, in .svg, or in neither, came 'a.pdf'"),
        (["run", "--output", "missing/a.svg"], "output: cannot write to missing/a.svg: No such file or directory"),
        (["nowhere"], "run_dir: nowhere is not a run directory: cannot read config.json: No such file or directory"),
        (["--group", *[f"{n}=run" for n in range(1)], *[f"--group={n}=run" for n in range(28)]], "runs: expected at most 28 lines"),
    ],
)
def test_a_wrong_command_line_gets_one_line_and_code_2(
    flags: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(Path("run"))
    monkeypatch.setattr(sys, "argv", ["impala-curves", *flags])
    with pytest.raises(SystemExit) as ended:
        main()
    (line,) = capsys.readouterr().err.splitlines()
    assert (ended.value.code, line[: len(said) + 15]) == (2, f"impala-curves: {said}")


def test_a_machine_without_matplotlib_is_told_which_extra_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(curves, "find_spec", lambda _: None)
    monkeypatch.setattr(sys, "argv", ["impala-curves", str(tmp_path)])
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().err == "impala-curves: not installed here: matplotlib; pip install 'impala-grpc[learner]'\n"


def test_the_command_names_what_it_wrote_and_what_it_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(Path("run"), [(10, 1.0, [3.0, None])], env=TWO)
    monkeypatch.setattr(sys, "argv", ["impala-curves", "run", "--output", "a.svg"])
    main()
    said = capsys.readouterr()
    assert said.out == "a.svg\n"
    assert said.err == "left out: run: Acrobot-v1 has no mean return yet: it wants 100 finished episodes\n"
