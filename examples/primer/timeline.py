"""Actors and a learner in time, with an integer in place of weights. docs/primer.md, section 5.2.

python -m examples.primer.timeline
"""

from typing import NamedTuple

TICKS, UPDATE, QUEUE, UNROLL = 28, 2, 1, {"quick": 1, "slow": 19}  # in ticks: run, update, unrolls; places in the queue


class Span(NamedTuple):
    """What somebody did from tick `start` to tick `end`, and with which version of the weights."""

    who: str
    doing: str  # act, wait or train
    start: int
    end: int
    version: int


def simulate() -> list[Span]:
    """Returns what the actors and the learner did, in the order in which it ended, and what actors are at when time is up."""
    newest, queue, spans = 0, list[int](), list[Span]()
    acting, training = dict.fromkeys(UNROLL, (0, 0)), None  # since when, and with what version
    for now in range(1, TICKS + 1):
        if training and now == training[0] + UPDATE:
            spans.append(Span("learner", "train", training[0], now, training[1]))
            newest, training = newest + 1, None
        for done, actor in sorted((acting[actor][0] + UNROLL[actor], actor) for actor in UNROLL):  # first come, first served
            began, version = acting[actor]
            if now >= done and len(queue) < QUEUE:
                queue.append(version)  # the unroll names the version that acted in it
                spans.append(Span(actor, "act", began, done, version))
                if now > done:
                    spans.append(Span(actor, "wait", done, now, version))
                acting[actor] = (now, newest)  # and only now the actor takes the newest weights
        if not training and queue:
            training = (now, queue.pop(0))
    return spans + [Span(actor, "act", began, TICKS, version) for actor, (began, version) in acting.items() if began < TICKS]


def main() -> None:
    """Prints every update, and whose weights had acted; then what the slow actor did."""
    spans = simulate()
    for version, span in enumerate(span for span in spans if span.doing == "train"):
        lag = version - span.version
        print(f"ticks {span.start:2} to {span.end:2}: version {version:2} learns from version {span.version}'s unroll, lag {lag}")
    for span in spans:
        if span.who == "slow":
            print(f"ticks {span.start:2} to {span.end:2}: slow actor, {span.doing} (version {span.version})")


if __name__ == "__main__":
    main()
