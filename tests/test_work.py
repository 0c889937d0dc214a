"""How much work is done, counted and not timed: operators, bytes copied, memory asked for, bytes sent. What grows here costs speed.

The limits are what was counted when they were written, and a twentieth more. A change that is worth more work may raise them.
"""

import asyncio
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from actor_client.actor import Actor
from benchmarks.wire import as_request, collect
from impala.environments import VectorEnvironment, agent_spec
from impala.networks import build_network
from impala.unroll import Unroll, concatenate
from impala.wire import Compressor, decode_unroll
from learner_server.config import LearnerConfig
from learner_server.learner import Learner
from learner_server.presets import preset
from learner_server.unroll_queue import UnrollQueue
from protos import impala_pb2 as pb

_COPIES = ("clone", "copy_", "_to_copy", "cat", "stack", "index_select")


class Operators(TorchDispatchMode):
    """Counts the operators that torch runs, and the bytes that they copy."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.copied = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        self.calls[name] += 1
        if name in _COPIES and isinstance(result, torch.Tensor):
            self.copied += result.nbytes
        return result


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def count(work: Callable[[], Any]) -> Operators:
    with Operators() as operators:
        work()
    return operators


def configured(name: str, **fields: Any) -> LearnerConfig:
    return LearnerConfig(**{**preset(name), **fields})


def collected(config: LearnerConfig) -> tuple[Actor, VectorEnvironment, Unroll[np.ndarray]]:
    """Returns an actor with its environments, and a batch that it collected."""
    spec = agent_spec(config.agent(), config.hosting())
    last = config.network.last_action_reward
    environment = VectorEnvironment(config.environments()[0], config.envs, spec=spec, last_action_reward=last)
    torch.manual_seed(0)
    actor = Actor(environment, build_network(config.network, spec), unroll_length=config.unroll_length, seed=0)
    actor._version = 1
    return actor, environment, concatenate([actor.collect().unroll.map(np.copy)])


@pytest.mark.parametrize(
    ("name", "operators", "copied"),
    [("cartpole", 275, 1_360), ("minatar", 243, 272_448), ("atari-shallow", 367, 6_343_640)],
)
def test_a_learner_step_takes_no_more_operators_and_copies(name: str, operators: int, copied: int) -> None:
    config = configured(name, envs=8)
    _, environment, batch = collected(config)
    environment.close()
    network = build_network(config.network, agent_spec(config.agent(), config.hosting()))
    learner = Learner(network, config.loss, config.optimiser, total_steps=config.total_steps)
    learner.step(batch, 0)
    counted = count(lambda: learner.step(batch, 0))
    assert counted.calls.total() <= 1.05 * operators, counted.calls
    assert counted.copied <= 1.05 * copied


@pytest.mark.parametrize(
    ("name", "operators", "copied"),
    [("cartpole", 413, 1_280), ("minatar", 473, 1_920), ("atari-shallow", 1_397, 9_350_720)],
)
def test_an_unroll_takes_no_more_operators_and_copies(name: str, operators: int, copied: int) -> None:
    actor, environment, _ = collected(configured(name, envs=8))
    counted = count(actor.collect)
    environment.close()
    assert counted.calls.total() <= 1.05 * operators, counted.calls
    assert counted.copied <= 1.05 * copied


def most_memory(work: Callable[[], Any]) -> int:
    """Returns the bytes that Python and NumPy held at most, of those that they asked for meanwhile."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.fixture(scope="module")
def breakout() -> tuple[list[Unroll[Any]], Any]:
    """Real unrolls of sixteen games, and what they must look like."""
    return collect("ALE/Breakout-v5", "atari-shallow", environments=16, skipped=2, unrolls=2)


def test_what_came_raw_is_not_copied(breakout: tuple[list[Unroll[Any]], Any]) -> None:
    unrolls, spec = breakout
    message = pb.SubmitTrajectoryRequest.FromString(as_request(unrolls[0], None))
    size = sum(array.nbytes for array in unrolls[0].arrays())
    # The message hands its bytes over once, in a copy of its own.
    assert most_memory(lambda: decode_unroll(message.unroll, spec)) <= 1.05 * size


def test_what_came_compressed_takes_its_own_size_once(breakout: tuple[list[Unroll[Any]], Any]) -> None:
    unrolls, spec = breakout
    message = pb.SubmitTrajectoryRequest.FromString(as_request(unrolls[0], Compressor()))
    size = sum(array.nbytes for array in unrolls[0].arrays())
    assert most_memory(lambda: decode_unroll(message.unroll, spec)) <= 1.05 * size


def test_a_batch_is_put_together_in_one_copy(breakout: tuple[list[Unroll[Any]], Any]) -> None:
    unrolls, _ = breakout
    queue = UnrollQueue(capacity=32, max_line=0)
    for unroll in unrolls:
        asyncio.run(queue.put(unroll))
    size = sum(array.nbytes for unroll in unrolls for array in unroll.arrays())
    assert most_memory(lambda: queue.take_batch(32, 0.0)) <= 1.05 * size


def test_real_frames_take_no_more_bytes_on_the_wire(breakout: tuple[list[Unroll[Any]], Any]) -> None:
    unrolls, _ = breakout
    compressor = Compressor()
    sizes = [len(as_request(unroll, compressor)) for unroll in unrolls]
    assert sum(sizes) / sum(unroll.length * unroll.environments for unroll in unrolls) <= 1.05 * 43.2
