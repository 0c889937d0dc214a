"""An actor that knows the contract, protos/impala.proto, and nothing else of this project: to be translated to another language.

    impala-learner --env CartPole-v1 --actors 0 --listen 127.0.0.1:50051 --total-steps 200000
    python -m examples.bare_actor --learner 127.0.0.1:50051

For the network "mlp" and environments of vectors with one choice, such as CartPole-v1; tensors are sent raw. What it leaves out:
TLS and token, more than one unroll under way, compression, redirects, wrappers, observations that are normalised.
"""

import argparse
import json
import random
import sys
import time
import uuid
from typing import Any

import grpc
import gymnasium
import numpy as np
import safetensors.numpy

from protos import impala_pb2 as pb
from protos import impala_pb2_grpc as pb_grpc

DTYPES = {"bool": pb.DTYPE_BOOL, "int64": pb.DTYPE_INT64, "float32": pb.DTYPE_FLOAT32}
AGAIN = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}


def tensor(array: np.ndarray) -> pb.Tensor:
    """Returns an array for the wire: C-ordered, little-endian, raw."""
    array = np.ascontiguousarray(array)
    return pb.Tensor(dtype=DTYPES[str(array.dtype)], shape=array.shape, data=array.tobytes(), encoding=pb.ENCODING_RAW)


def log_policy(weights: dict[str, np.ndarray], observations: np.ndarray) -> np.ndarray:
    """Returns log mu, [E, A]: linear layers with tanh after each, and the policy's head."""
    features, layer = observations, 0
    while f"torso.layers.{layer}.weight" in weights:
        features = np.tanh(features @ weights[f"torso.layers.{layer}.weight"].T + weights[f"torso.layers.{layer}.bias"])
        layer += 2
    logits = features @ weights["policy_head.weight"].T + weights["policy_head.bias"]
    logits -= logits.max(-1, keepdims=True)
    return np.asarray(logits - np.log(np.exp(logits).sum(-1, keepdims=True)), np.float32)


def patiently(call: Any, request: Any, seconds: float) -> Any:
    """Returns the answer; the same message again while the learner is not there or an answer was lost."""
    for attempt in range(10):
        try:
            return call(request, timeout=seconds)
        except grpc.RpcError as error:
            if error.code() not in AGAIN or attempt == 9:
                raise
            time.sleep(random.uniform(0.5, 1.0) * 0.1 * 2**attempt)  # noqa: S311 - jitter, so that actors do not come back all at once
    raise AssertionError


class Player:
    """E environments, and where they are between two unrolls."""

    def __init__(self, run: pb.JoinResponse) -> None:
        self.world = gymnasium.make_vec(run.environment_id, run.environments, **json.loads(run.environment_kwargs_json or "{}"))
        self.chance = np.random.default_rng(run.seed)
        self.observations = np.asarray(self.world.reset(seed=int(run.seed) % 2**31)[0], np.float32)
        self.first, self.ended = np.ones(run.environments, np.bool_), np.zeros(run.environments, np.bool_)
        self.returns, self.lengths = np.zeros(run.environments), np.zeros(run.environments, np.int64)

    def collect(self, weights: dict[str, np.ndarray], version: int, length: int) -> tuple[pb.Unroll, list[pb.Episode]]:
        """Returns the next `length` steps, all by these weights, and the episodes that ended in them."""
        seen, starts, rows, episodes = [self.observations], [self.first], [], []
        for _ in range(length):
            log_probs = log_policy(weights, self.observations)
            actions = (log_probs + self.chance.gumbel(size=log_probs.shape)).argmax(-1)
            following, rewards, terminated, truncated, _ = self.world.step(actions)
            # In Gymnasium's next-step mode the step after an episode's last is its reset: it leads to a first observation.
            self.first = self.ended
            self.returns += rewards
            self.lengths += ~self.first
            self.ended = terminated | truncated
            for index in np.flatnonzero(self.ended):
                episodes.append(pb.Episode(episode_return=self.returns[index], length=int(self.lengths[index])))
                self.returns[index] = self.lengths[index] = 0
            chosen = np.take_along_axis(log_probs, actions[:, None], 1)[:, 0]
            rows.append((actions.astype(np.int64), np.float32(rewards), terminated, chosen))
            self.observations = np.asarray(following, np.float32)
            seen.append(self.observations)
            starts.append(self.first)
        chosen_actions, rewards, terminated, log_mus = (tensor(np.stack(column)) for column in zip(*rows, strict=True))
        unroll = pb.Unroll(
            parameter_version=version,
            observations=[pb.NamedTensor(name="observation", tensor=tensor(np.stack(seen)))],
            is_first=tensor(np.stack(starts)),
            actions=chosen_actions,
            rewards=rewards,
            terminated=terminated,
            behaviour_log_probs=log_mus,
        )
        return unroll, episodes


def act(stub: pb_grpc.LearnerStub, most: int) -> int:
    """Submits unrolls until the run is over, at most so many; returns how many were accepted."""
    actor_id, accepted, left, over = f"bare-{uuid.uuid4().hex[:8]}", 0, most, False
    while left and not over:
        joining = pb.JoinRequest(protocol_version=1, actor_id=actor_id, incarnation=time.time_ns(), stay=True)
        run = patiently(stub.Join, joining, 10)
        check(run)
        player, weights, version, newest, sequence = Player(run), {}, 0, 1, 0
        try:
            while left and not over:
                if newest > version:
                    request = pb.GetParametersRequest(actor_id=actor_id, known_version=version)
                    answer = patiently(stub.GetParameters, request, 30)
                    if not answer.not_modified:
                        weights, version = safetensors.numpy.load(answer.parameters), answer.version
                began = time.monotonic()
                unroll, episodes = player.collect(weights, version, run.unroll_length)
                sequence += 1
                submission = pb.SubmitTrajectoryRequest(
                    actor_id=actor_id,
                    incarnation=joining.incarnation,
                    sequence=sequence,
                    spec_digest=run.spec_digest,
                    unroll=unroll,
                    episodes=episodes,
                    age_seconds=time.monotonic() - began,
                )
                told = patiently(stub.SubmitTrajectory, submission, 90)
                accepted, newest, left = accepted + told.accepted, told.parameter_version, left - 1
                over = told.reason == pb.REASON_RUN_OVER
        except grpc.RpcError as error:
            # The learner was started anew and knows no such actor, or has another run. Where `Join` itself says so, that is that.
            if error.code() is not grpc.StatusCode.FAILED_PRECONDITION:
                raise
        finally:
            player.world.close()
    return accepted


def check(run: pb.JoinResponse) -> None:
    """Ends the program where the run asks for what is left out here."""
    network = json.loads(run.network_json)
    known = network.get("network", "auto") in ("auto", "mlp") and not network.get("normalise_observations")
    if not known or run.state_specs or len(run.actions.sizes) != 1 or json.loads(run.environment_wrappers_json or "[]"):
        raise SystemExit(
            f"{run.environment_id}: expected the network mlp without a memory, one choice, no wrappers, observations as they are"
        )


def main() -> None:
    """Acts for the learner that is named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--learner", required=True, help="HOST:PORT")
    parser.add_argument("--unrolls", type=int, default=sys.maxsize, help="most to submit")
    arguments = parser.parse_args()
    with grpc.insecure_channel(arguments.learner) as channel:
        print(f"{act(pb_grpc.LearnerStub(channel), arguments.unrolls)} unrolls accepted")


if __name__ == "__main__":
    main()
