"""The picture of runs against each other: mean return by agent steps and by seconds."""

import io
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from run_directory.bands import Curve, band, curve
from run_directory.comparison import Group, Samples, frames_per_step

if TYPE_CHECKING:  # it comes with the extra `learner`, and takes most of a second to import
    from matplotlib.axes import Axes

# Okabe and Ito's colours, which the colour-blind tell apart, without the yellow that paper swallows, the darkest first.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#000000", "#cc79a7", "#e69f00", "#56b4e9")
# So that a print without colours can be read too.
_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))
_LEGEND_CHARACTERS, _HANDLE_CHARACTERS = 110, 6
MOST_LINES = len(_COLOURS) * len(_DASHES)


@dataclass(frozen=True, kw_only=True)
class _Line:
    label: str
    samples: Sequence[Samples]
    colour: str
    dashes: Any


def draw(groups: Sequence[Group], form: str) -> tuple[bytes, list[str]]:
    """Returns a picture of groups of runs of the same environments, and what it cannot show, a sentence each.

    A group of one run is a line. Of more it is the mean with a band for its 95% interval (`run_directory.bands`), as far as all of
    its runs go, over thin lines for the runs, each as far as it goes. With several tasks each has such a line.

    Args:
        form: png or svg. Equal runs make equal bytes.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    lines, environments = list(_lines(groups)), groups[0].runs[0].environments
    notes = list(_left_out(groups))
    image = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "impala"}):
        figure = Figure(figsize=(10, 4.2), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, 2, sharey=True)
        for axes, x, label in zip(panels, ("steps", "seconds"), (_steps_label(groups), "seconds"), strict=True):
            without = [line for line in lines if not _draw_line(axes, line, x)]
            notes += [f"{line.label}: no mean by {label}: one run ends before another has a mean return" for line in without]
            axes.set_xlabel(label)
            axes.set_xlim(left=0)
            axes.grid(alpha=0.3)
        panels[0].xaxis.set_major_formatter(EngFormatter(sep=""))
        panels[0].set_ylabel("mean return, last 100 episodes")
        # By the lines alone: of two seeds that differ the interval may be many times as high, and goes on beyond the frame.
        panels[0].set_ylim(*_limits(np.concatenate([each.get_ydata() for axes in panels for each in axes.lines])))
        figure.suptitle(", ".join(environment.environment_id for environment in environments))
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=_columns(labels), frameon=False)
        figure.savefig(image, format=form, dpi=150, metadata={"Date": None} if form == "svg" else None)
    return image.getvalue(), notes


def count_lines(groups: Sequence[Group]) -> int:
    """Returns how many lines a picture would have; beyond `MOST_LINES` two would look alike."""
    return sum(1 for _ in _lines(groups))


def _lines(groups: Sequence[Group]) -> Iterator[_Line]:
    environments = groups[0].runs[0].environments
    tasks = len(environments)
    by_group_and_task = tasks > 1 and len(groups) > 1 and len(groups) <= len(_COLOURS) and tasks <= len(_DASHES)
    numbers = itertools.count()
    for place, group in enumerate(groups):
        for task in range(tasks):
            samples = [run.tasks[task] for run in group.runs]
            known = [each for each in samples if each is not None]
            if not known:
                continue
            number = next(numbers)
            colour, dashes = (place, task) if by_group_and_task else (number, number)
            yield _Line(
                label=f"{_label(group, environments[task].environment_id, tasks)} ({_count(group, len(known))})",
                samples=known,
                colour=_COLOURS[colour % len(_COLOURS)],
                dashes=_DASHES[dashes % len(_DASHES)],
            )


def _label(group: Group, environment_id: str, tasks: int) -> str:
    if tasks == 1:
        return group.name
    # A group without a name of its own is named after all of its tasks.
    all_tasks = ", ".join(environment.environment_id for environment in group.runs[0].environments)
    return environment_id if group.name == all_tasks else f"{group.name}: {environment_id}"


def _count(group: Group, count: int) -> str:
    noun = "seed" if len({run.seed for run in group.runs}) == len(group.runs) else "run"
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _draw_line(axes: "Axes", line: _Line, x: str) -> bool:
    """Draws a line into one panel; returns False where it has no mean there."""
    style: dict[str, Any] = {"color": line.colour, "linestyle": line.dashes, "label": line.label}
    curves: list[Curve] = [curve(getattr(samples, x), samples.returns) for samples in line.samples]
    if len(curves) == 1:
        # A single point has no line, and must be seen.
        axes.plot(curves[0].x, curves[0].y, lw=1.8, marker="o" if curves[0].x.size == 1 else None, **style)
        return True
    for each in curves:
        axes.plot(each.x, each.y, lw=0.6, alpha=0.45, color=line.colour)
    mean = band(curves)
    if mean is None:
        axes.plot([], [], lw=1.8, **style)
        return False
    axes.fill_between(mean.x, mean.mean - mean.half_width, mean.mean + mean.half_width, color=line.colour, alpha=0.18, lw=0)
    axes.plot(mean.x, mean.mean, lw=1.8, **style)
    return True


def _limits(values: np.ndarray) -> tuple[float, float]:
    """Returns where a panel with these values ends below and above."""
    low, high = values.min(), values.max()
    margin = 0.05 * (high - low) or 1.0
    return low - margin, high + margin


def _columns(labels: Sequence[str]) -> int:
    """Returns in how many columns a legend fits below the picture."""
    return max(1, min(3, len(labels), _LEGEND_CHARACTERS // (max(map(len, labels)) + _HANDLE_CHARACTERS)))


def _left_out(groups: Iterable[Group]) -> Iterator[str]:
    for group in groups:
        for run in group.runs:
            for environment, samples in zip(run.environments, run.tasks, strict=True):
                if samples is None:
                    yield f"{run.path}: {environment.environment_id} has no mean return yet: it wants 100 finished episodes"


def _steps_label(groups: Sequence[Group]) -> str:
    frames = {frames_per_step(environment) for environment in groups[0].runs[0].environments}
    known = frames.pop() if len(frames) == 1 else None
    return "agent steps" if known is None else f"agent steps of {known} frame{'' if known == 1 else 's'} each"
