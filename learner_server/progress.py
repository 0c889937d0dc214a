"""What a person sees of a run: a live display on a terminal, plain lines elsewhere."""

import time
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from learner_server.verdict import Limit, Verdict

# Between what is shown: nobody reads faster, and drawing a terminal's panel takes the thread that trains up to 6 ms.
_LIVE_SECONDS = 1.0
_PLAIN_SECONDS = 2.0


class ProgressDisplay:
    """Shows a run's figures now and then until closed. What is printed meanwhile, logging included, appears above it.

    Args:
        console: where to; its being a terminal that can move its cursor decides the form.
        title: what is trained.
        total_steps: where the bar ends.
        stop_at_return: shown beside the mean return; None for none.
    """

    def __init__(self, console: Console, *, title: str, total_steps: int, stop_at_return: float | None) -> None:
        self._console = console
        self._title = title
        self._total_steps = total_steps
        self._target = stop_at_return
        self._due = 0.0
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal and not console.is_dumb_terminal else None
        if self._live:
            self._live.start()

    def show(self, figures: dict[str, Any]) -> None:
        """Shows the newest figures, unless others were shown a moment ago; those of a run's end always."""
        if "ended" not in figures and time.monotonic() < self._due:
            return
        self._due = time.monotonic() + (_LIVE_SECONDS if self._live else _PLAIN_SECONDS)
        if self._live:
            self._live.update(self._panel(figures), refresh=True)
        else:
            self._console.print(self._line(figures), soft_wrap=True, highlight=False)

    def close(self) -> None:
        """Leaves the last figures on the screen."""
        if self._live:
            self._live.stop()

    def _panel(self, figures: dict[str, Any]) -> Group:
        table = Table.grid(padding=(0, 2))
        for _ in range(4):
            table.add_column(justify="right", style="dim")
            table.add_column()
        of_target = f" of {self._target:g}" if self._target is not None else ""
        table.add_row(
            "steps", f"{figures['env_steps']:,}",
            "steps/s", f"{figures['steps_per_second']:,.0f}",
            "mean return", _number(figures["mean_return_100"], ".1f") + of_target,
            "time left", _duration(self._seconds_left(figures)),
        )  # fmt: skip
        table.add_row(
            "updates", f"{figures['learner_updates']:,}",
            "policy lag", _number(figures["policy_lag_mean"], ".1f"),
            "queue", f"{figures['queued_trajectories']} trajectories",
            "actors", str(figures["actors"]),
        )  # fmt: skip
        # In a table, for a bar by itself ends without a line break, and the row below would run on from it.
        bar = Table.grid(expand=True)
        bar.add_row(ProgressBar(total=self._total_steps, completed=figures["env_steps"]))
        verdict = Verdict(Limit(figures["limit"]), figures["limit_evidence"])
        rows: list[RenderableType] = [f"[bold]{self._title}[/bold]  {figures['seconds']:.0f} s", bar, table]
        rows.append(f"[bold]{verdict.limit.value}[/bold]: {verdict.evidence}. [dim]Next: {verdict.advice}.[/dim]")
        if faults := _faults(figures):
            rows.append(f"[bold red]{faults}[/bold red]")
        return Group(*rows)

    def _line(self, figures: dict[str, Any]) -> str:
        return (
            f"{figures['seconds']:8.1f} s  {figures['env_steps']:>11,} steps  {figures['steps_per_second']:>9,.0f} steps/s  "
            f"return {_number(figures['mean_return_100'], '.1f')}  lag {_number(figures['policy_lag_mean'], '.1f')}  "
            f"queue {figures['queued_trajectories']}  actors {figures['actors']}  left {_duration(self._seconds_left(figures))}  "
            f"limit {figures['limit']}" + (f"  {faults}" if (faults := _faults(figures)) else "")
        )

    def _seconds_left(self, figures: dict[str, Any]) -> float | None:
        rate = figures["steps_per_second"]
        return max(0, self._total_steps - figures["env_steps"]) / rate if rate else None


def _faults(figures: dict[str, Any]) -> str:
    """Returns what could not be written and how old the newest checkpoint is; nothing where the disk never failed."""
    failures = [f"{what} {count}" for what, count in figures.get("disk_failures", {}).items() if count]
    if not failures:
        return ""
    age = figures["checkpoint_age_seconds"]
    return f"disk failures: {', '.join(failures)}; newest checkpoint {'none' if age is None else f'{age:.0f} s old'}"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
