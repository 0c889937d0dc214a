"""All that learner and actor tell Prometheus: each with every figure known and every label used once."""

import re
from contextlib import closing

from prometheus_client.core import Metric

from actor_client.figures import ActorFigures
from actor_client.prometheus import ActorCollector
from learner_server.histograms import LearnerHistograms
from learner_server.prometheus import COUNTERS, GAUGES, LABELLED, RETURN, MetricsPort

# Not ours: whether a scrape was answered, and which alerts fire.
PROMETHEUS_OWN = {"up", "ALERTS"}

# What PromQL has between the names of metrics: strings, what says which series and of what time, and by which labels.
_NOT_NAMES = re.compile(r'"[^"]*"|\{[^}]*\}|\[[^]]*\]|\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)')
_NAMES = re.compile(r"\b[a-zA-Z_:][a-zA-Z0-9_:]*\b(?!\s*\()")
_OPERATORS = {"and", "or", "unless", "bool", "offset"}


def learner_families() -> list[Metric]:
    with closing(MetricsPort("127.0.0.1:0", LearnerHistograms(), checkpoint_seconds=60.0)) as port:
        port.update({**dict.fromkeys([*COUNTERS, *GAUGES], 1.0), **{name: {"x": 1} for name in LABELLED}, RETURN: [1.0]})
        return list(port.collect())


def actor_families() -> list[Metric]:
    figures = ActorFigures()
    figures.note_call("Join", 0.1, "UNAVAILABLE")
    return list(ActorCollector(figures).collect())


def series() -> set[str]:
    """Returns the names that a query may use: those of samples, a histogram's buckets, sum and count among them."""
    return {sample.name for family in [*learner_families(), *actor_families()] for sample in family.samples}


def types() -> dict[str, str]:
    """Returns the type of each metric by the name that a reader knows it by: a counter's ends in _total."""
    families = [*learner_families(), *actor_families()]
    return {family.name + ("_total" if family.type == "counter" else ""): family.type for family in families}


def names_in(query: str) -> set[str]:
    """Returns the names of metrics, ours and others, that a PromQL expression asks for."""
    names = _NAMES.findall(_NOT_NAMES.sub(" ", query))
    return {name for name in names if name not in _OPERATORS}
