"""The learning curve of a run, drawn from its metrics when it ends."""

from pathlib import Path

from run_directory.files import write_atomically
from run_directory.journal import each_metrics

# More than a picture can show; a run of weeks has millions.
_POINTS = 4000


def draw_curve(metrics: Path, curve: Path, *, title: str, target: float | None) -> bool:
    """Draws mean return over the last 100 episodes, by agent steps and by seconds; returns False where there is nothing to draw."""
    # Late: it takes most of a second to import, and training is over when it is needed.
    import io

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    points = [
        (line["env_steps"], line["seconds"], line["mean_return_100"])
        for line in each_metrics(metrics)
        if line["mean_return_100"] is not None
    ]
    if not points:
        return False
    if len(points) > _POINTS:  # and the last, with which the run ended
        points = points[:: -(-len(points) // _POINTS)] + points[-1:]
    steps, seconds, returns = zip(*points, strict=True)
    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, x, label in zip(figure.subplots(1, 2, sharey=True), (steps, seconds), ("agent steps", "seconds"), strict=True):
        axes.plot(x, returns, marker="o", markersize=3)
        if target is not None:
            axes.axhline(target, linestyle="--", linewidth=1, color="grey", label=f"target {target:g}")
            axes.legend(loc="lower right")
        axes.set_xlabel(label)
        axes.set_xlim(left=0)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("mean return, last 100 episodes")
    figure.suptitle(title)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=110)
    write_atomically(curve, image.getvalue())
    return True
