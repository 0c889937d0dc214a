"""Bytes on the wire and what they cost: unrolls of real games, encoded and decoded as actor and learner do.

    python -m benchmarks.wire --output benchmarks/wire.json

For each game an actor plays with the network of a preset, its weights as they are at the start; its unrolls are measured compressed
and raw: bytes of the whole message per agent step, and microseconds of processor time per agent step to encode and to decode.
Exit code 1 where a game needs more bytes or more time than asked for.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from actor_client.actor import Actor
from benchmarks.machine import machine
from impala.environments import VectorEnvironment, agent_spec
from impala.networks import build_network
from impala.processor import prepare_processor
from impala.specs import UnrollSpec
from impala.unroll import Unroll
from impala.wire import Compressor, decode_unroll, encode_unroll
from learner_server.config import LearnerConfig
from learner_server.presets import preset
from protos import impala_pb2 as pb

GAMES = ("ALE/Breakout-v5", "ALE/Pong-v5", "ALE/Seaquest-v5", "ALE/SpaceInvaders-v5")
_REPEATS = 5


def collect(game: str, name: str, *, environments: int, skipped: int, unrolls: int) -> tuple[list[Unroll[Any]], UnrollSpec]:
    """Returns copies of an actor's unrolls, after some that are left out, for games begin alike; and what they must look like."""
    config = LearnerConfig(**{**preset(name), "env": (game,)})
    spec = agent_spec(config.agent(), config.hosting())
    torch.manual_seed(0)
    network = build_network(config.network, spec)
    last = config.network.last_action_reward
    environment = VectorEnvironment(config.agent().environments[0], environments, spec=spec, last_action_reward=last)
    try:
        actor = Actor(environment, network, unroll_length=config.unroll_length, seed=0)
        actor.load_parameters(1, network.state_dict())
        kept = [actor.collect().unroll.map(lambda array: array.copy()) for _ in range(skipped + unrolls)][skipped:]
    finally:
        environment.close()
    return kept, UnrollSpec(
        unroll_length=config.unroll_length, max_environments=environments, environment=spec, state=network.state_spec()
    )


def as_request(unroll: Unroll[Any], compressor: Compressor | None) -> bytes:
    """Returns the message in which an actor sends an unroll."""
    request = pb.SubmitTrajectoryRequest(
        actor_id="actor-0123456789ab",
        incarnation=time.time_ns(),
        sequence=1000,
        spec_digest="0123456789abcdef",
        unroll=encode_unroll(unroll, compressor),
        age_seconds=0.1,
    )
    return request.SerializeToString()


def measure(unrolls: list[Unroll[Any]], spec: UnrollSpec, *, compressed: bool) -> dict[str, float]:
    """Returns bytes and microseconds per agent step, of all unrolls; the best of a few rounds, others having the processor too."""
    compressor = Compressor() if compressed else None
    steps = sum(unroll.length * unroll.environments for unroll in unrolls)
    for _ in range(2):  # what does not pay is known from then on
        messages = [as_request(unroll, compressor) for unroll in unrolls]
    encode = _least(lambda: [as_request(unroll, compressor) for unroll in unrolls])
    decode = _least(lambda: [decode_unroll(pb.SubmitTrajectoryRequest.FromString(each).unroll, spec) for each in messages])
    return {
        "bytes_per_step": round(sum(map(len, messages)) / steps, 1),
        "encode_microseconds_per_step": round(encode / steps * 1e6, 2),
        "decode_microseconds_per_step": round(decode / steps * 1e6, 2),
    }


def _least(work: Callable[[], Any]) -> float:
    times = []
    for _ in range(_REPEATS):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--games", nargs="+", default=list(GAMES))
    parser.add_argument("--preset", default="atari-shallow")
    parser.add_argument("--envs", type=int, default=16)
    parser.add_argument("--skipped", type=int, default=10, help="unrolls left out")
    parser.add_argument("--unrolls", type=int, default=10, help="unrolls measured")
    parser.add_argument("--most-bytes", type=float, default=141.0, help="a step, compressed: a 200th of four frames of 84 x 84")
    parser.add_argument("--most-microseconds", type=float, default=5.0, help="a step, compressed, both ends together")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    prepare_processor(1)
    results, missed = {}, []
    for game in arguments.games:
        unrolls, spec = collect(
            game, arguments.preset, environments=arguments.envs, skipped=arguments.skipped, unrolls=arguments.unrolls
        )
        results[game] = {how: measure(unrolls, spec, compressed=how == "compressed") for how in ("compressed", "raw")}
        got = results[game]["compressed"]
        microseconds = got["encode_microseconds_per_step"] + got["decode_microseconds_per_step"]
        if got["bytes_per_step"] > arguments.most_bytes or microseconds > arguments.most_microseconds:
            missed.append(game)
        print(game, json.dumps(results[game]), flush=True)
    if arguments.output is not None:
        command = f"python -m benchmarks.wire {' '.join(sys.argv[1:])}"
        arguments.output.write_text(json.dumps({"command": command, "machine": machine(), "games": results}, indent=1) + "\n")
    if missed:
        print(f"more than asked for: {', '.join(missed)}")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
