"""Who watches a run: its console, Prometheus, browsers. Each is told every line of metrics, on the training thread."""

import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape

from impala.addresses import split_address
from learner_server.actor_registry import ActorRegistry
from learner_server.config import LearnerConfig
from learner_server.console import FigureLog, say
from learner_server.histograms import LearnerHistograms
from learner_server.progress import ProgressDisplay
from learner_server.prometheus import MetricsPort

Show = Callable[[dict[str, Any]], None]


@contextmanager
def watchers(
    config: LearnerConfig,
    console: Console,
    *,
    learners: int,
    actors: ActorRegistry,
    histograms: LearnerHistograms,
    token: str | None,
    context: ssl.SSLContext | None,
) -> Iterator[Show]:
    """Yields what shows a line of metrics to all that the configuration asks for.

    Args:
        learners: that train as one.
        token, context: as browsers are served, see `StatusServer`.

    Raises:
        ConfigError: an address cannot be listened on.
    """
    with ExitStack() as open_ones:
        shows: list[Show] = []
        if config.metrics is not None:
            port = MetricsPort(config.metrics, histograms, checkpoint_seconds=config.checkpoint_seconds)
            shows.append(open_ones.enter_context(closing(port)).update)
        if config.status is not None:
            page = _status_page(
                config,
                config.status,
                console,
                learners=learners,
                actors=actors,
                histograms=histograms,
                token=token,
                context=context,
            )
            shows.append(open_ones.enter_context(page))
        shows.append(open_ones.enter_context(closing(_display(config, console))).show)

        def show(figures: dict[str, Any]) -> None:
            for each in shows:
                each(figures)

        yield show


def _display(config: LearnerConfig, console: Console) -> ProgressDisplay | FigureLog:
    if config.log_format == "json":
        return FigureLog()
    return ProgressDisplay(
        console,
        title=f"IMPALA  {escape(', '.join(config.env))}  seed {config.seed}",
        total_steps=config.total_steps,
        stop_at_return=config.stop_at_return,
    )


@contextmanager
def _status_page(
    config: LearnerConfig,
    address: str,
    console: Console,
    *,
    learners: int,
    actors: ActorRegistry,
    histograms: LearnerHistograms,
    token: str | None,
    context: ssl.SSLContext | None,
) -> Iterator[Show]:
    # Late: a learner without the page needs no HTTP server.
    from learner_server.status.feed import StatusFeed
    from learner_server.status.server import StatusServer

    capacity = learners * config.queue_batches * config.fresh_trajectories
    run = {
        "env": config.env,
        "seed": config.seed,
        "total_steps": config.total_steps,
        "stop_at_return": config.stop_at_return,
        "queue_capacity": capacity,
        # Tells a page that is open that it hears of another process than before.
        "process": time.time(),
    }
    feed = StatusFeed(
        run=run,
        queue_capacity=capacity,
        max_policy_lag=config.max_policy_lag,
        environments=config.envs,
        actors=actors,
        histograms={"policy_lag": histograms.policy_lag, "ratio": histograms.ratio},
    )
    with closing(feed), closing(StatusServer(address, feed, token=token, context=context)) as server:
        scheme = "http" if context is None else "https"
        say(console, f"status page: {scheme}://{split_address(address, field='status')[0]}:{server.port}/")
        yield feed.update
