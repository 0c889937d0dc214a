"""IMPALA in one file: threads that act, one that learns, and V-trace for the lag between them.

    python examples/minimal_impala.py --seed 0

trains CartPole-v1 until its weights, held still, have a mean return of 475 over 100 new episodes, and then ends with code 0; with
code 1 if they do not within --updates. docs/primer.md, section 9, explains it part by part.
"""

import argparse
import queue
import sys
import threading
import time
from collections import deque
from typing import NamedTuple

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn

ENVIRONMENT, SOLVED, EPISODES = "CartPole-v1", 475.0, 100
ACTORS, ENVS, UNROLL, BATCH = 2, 16, 20, 2  # threads; environments of each; steps of an unroll; unrolls of a batch
DISCOUNT, REWARD_SCALE, RHO_BAR, C_BAR = 0.99, 0.05, 1.0, 1.0
BASELINE_COST, ENTROPY_COST, LEARNING_RATE, MAX_GRAD_NORM = 0.5, 0.005, 2e-3, 40.0


# 1. The network: a policy and a value.
class ActorCritic(nn.Module):
    """Two separate networks, from an observation to the policy's logits and to V."""

    def __init__(self, inputs: int, actions: int) -> None:
        super().__init__()
        self.policy, self.value = (
            nn.Sequential(nn.Linear(inputs, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, outputs))
            for outputs in (actions, 1)
        )


# 2. What travels: unrolls one way, weights with their version the other.
class Unroll(NamedTuple):
    """T steps of E environments; row t is the transition from x_t to x_{t+1}."""

    observations: Tensor  # [T+1, E, ...] x_0 to x_T
    actions: Tensor  # [T, E] taken at x_t
    log_probs: Tensor  # [T, E] log mu(a_t|x_t), of the policy that acted
    rewards: Tensor  # [T, E]
    terminated: Tensor  # [T, E] the episode ended at x_{t+1} by its own rules; a time limit is not termination
    resets: Tensor  # [T, E] row t is no step of an episode but leads from its last observation to the next one's first
    version: int  # of the weights that acted, the same in all T steps
    returns: list[float]  # of the episodes that ended in it


class Shared:
    """What the threads share."""

    def __init__(self, network: ActorCritic) -> None:
        self.unrolls: queue.Queue[Unroll] = queue.Queue(maxsize=BATCH)  # bounded: who is ahead waits
        self.stopped = threading.Event()
        self.publish(0, network)

    def publish(self, version: int, network: ActorCritic) -> None:
        """Makes a copy of the weights the ones that actors take next; one assignment, so version and weights are a pair."""
        self.weights = (version, {name: tensor.clone() for name, tensor in network.state_dict().items()})


# 3. The actor: T steps with one version of the weights, again and again.
def act(network: ActorCritic, shared: Shared, seed: int) -> None:
    """Collects unrolls until stopped."""
    environments = gymnasium.make_vec(ENVIRONMENT, ENVS)  # next-step autoreset: the step after an episode's last is its reset
    generator = torch.Generator().manual_seed(seed)
    observations = torch.as_tensor(environments.reset(seed=seed)[0])
    ended, totals = torch.zeros(ENVS, dtype=torch.bool), np.zeros(ENVS)
    while not shared.stopped.is_set():
        version, weights = shared.weights
        network.load_state_dict(weights)
        rows, returns = [], []
        for _ in range(UNROLL):
            with torch.no_grad():
                log_policy = network.policy(observations).log_softmax(-1)
            actions = torch.multinomial(log_policy.exp(), 1, generator=generator).squeeze(-1)
            log_probs = log_policy.gather(-1, actions[:, None]).squeeze(-1)
            following, rewards, terminated, truncated, _ = environments.step(actions.numpy())
            rows.append((observations, actions, log_probs, torch.tensor(rewards), torch.tensor(terminated), ended))
            totals += rewards
            done = terminated | truncated
            returns += totals[done].tolist()
            totals[done] = 0.0
            observations, ended = torch.tensor(following), torch.tensor(done)
        xs, chosen, log_mus, paid, deaths, resets = (torch.stack(column) for column in zip(*rows, strict=True))
        unroll = Unroll(torch.cat([xs, observations[None]]), chosen, log_mus, paid, deaths, resets, version, returns)
        while not shared.stopped.is_set():  # here the actor waits for a learner that is behind
            try:
                shared.unrolls.put(unroll, timeout=0.1)
                break
            except queue.Full:
                continue


# 4. V-trace: targets and advantages for data of an older policy.
def vtrace(log_rhos: Tensor, discounts: Tensor, rewards: Tensor, values: Tensor, bootstrap: Tensor) -> tuple[Tensor, Tensor]:
    """Returns v_t and advantages from log pi/mu, gamma_t, r_t, V(x_t) and V(x_T), [T, B] and [B]; docs/primer.md, section 7.3."""
    ratios = log_rhos.exp()
    rhos, cs = ratios.clamp(max=RHO_BAR), ratios.clamp(max=C_BAR)
    next_values = torch.cat([values[1:], bootstrap[None]])
    deltas = rhos * (rewards + discounts * next_values - values)
    errors, error = [], torch.zeros_like(bootstrap)  # v_t - V(x_t): 0 beyond the unroll
    for t in reversed(range(len(values))):
        error = deltas[t] + discounts[t] * cs[t] * error
        errors.append(error)
    vs = values + torch.stack(errors[::-1])
    next_vs = torch.cat([vs[1:], bootstrap[None]])
    return vs, rhos * (rewards + discounts * next_vs - values)


# 5. The loss: policy gradient, baseline and entropy, summed over time and batch.
def impala_loss(network: ActorCritic, batch: list[Unroll]) -> Tensor:
    """Returns the loss of the unrolls side by side."""
    xs, actions, log_mus, rewards, terminated, resets = (torch.cat(part, dim=1) for part in list(zip(*batch, strict=True))[:6])
    values = network.value(xs).squeeze(-1)
    log_policy = network.policy(xs[:-1]).log_softmax(-1)
    log_probs = log_policy.gather(-1, actions[..., None]).squeeze(-1)
    with torch.no_grad():
        log_rhos = (log_probs - log_mus).masked_fill(resets, -torch.inf)  # a reset row weighs nothing
        vs, advantages = vtrace(log_rhos, DISCOUNT * ~terminated, REWARD_SCALE * rewards, values[:-1], values[-1])
    policy_gradient = -(log_probs * advantages).sum()
    baseline = 0.5 * (vs - values[:-1]).square().masked_fill(resets, 0.0).sum()
    entropy = -(log_policy.exp() * log_policy).sum(-1).masked_fill(resets, 0.0).sum()
    total: Tensor = policy_gradient + BASELINE_COST * baseline - ENTROPY_COST * entropy
    return total


# 6. The learner: a batch, a step, a version.
@torch.no_grad()
def evaluate(network: ActorCritic, seed: int) -> float:
    """Returns the mean return of 100 new episodes, actions drawn as in training."""
    environments = gymnasium.make_vec(ENVIRONMENT, EPISODES)
    observations, _ = environments.reset(seed=seed)
    returns, going = np.zeros(EPISODES), np.ones(EPISODES, dtype=np.bool_)
    while going.any():
        policy = network.policy(torch.as_tensor(observations)).softmax(-1)
        observations, rewards, terminated, truncated, _ = environments.step(torch.multinomial(policy, 1).squeeze(-1).numpy())
        returns += rewards * going
        going &= ~(terminated | truncated)
    return float(returns.mean())


def learn(network: ActorCritic, shared: Shared, updates: int, seed: int) -> bool:
    """Returns whether it was solved: the last 100 episodes have a mean of 475, and 100 new ones with the weights held too."""
    optimiser = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
    start, returns = time.monotonic(), deque[float](maxlen=EPISODES)
    for version in range(1, updates + 1):
        batch = [shared.unrolls.get(timeout=60) for _ in range(BATCH)]  # here the learner waits for actors
        optimiser.zero_grad()
        impala_loss(network, batch).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), MAX_GRAD_NORM)
        optimiser.step()
        shared.publish(version, network)
        for unroll in batch:
            returns.extend(unroll.returns)
        mean = sum(returns) / max(1, len(returns))
        steps, seconds = version * BATCH * ENVS * UNROLL, time.monotonic() - start
        if version % 50 == 0:
            lag = version - 1 - sum(unroll.version for unroll in batch) / BATCH
            print(f"{seconds:5.1f} s  update {version:5}  {steps:8,} steps  return {mean:5.1f}  lag {lag:.1f}", flush=True)
        if len(returns) == EPISODES and mean >= SOLVED:
            score = evaluate(network, seed + version)
            if score >= SOLVED:
                print(f"solved in {seconds:.1f} s, {steps:,} steps: {EPISODES} new episodes return {score:.1f}")
                return True
    return False


def main() -> None:
    """Starts actors, learns, and stops them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--updates", type=int, default=5000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    networks = [ActorCritic(4, 2) for _ in range(1 + ACTORS)]
    shared = Shared(networks[0])
    seeds = [arguments.seed * ACTORS + number for number in range(ACTORS)]
    actors = [threading.Thread(target=act, args=(networks[1 + i], shared, seeds[i]), name=f"actor-{i}") for i in range(ACTORS)]
    for actor in actors:
        actor.start()
    try:
        solved = learn(networks[0], shared, arguments.updates, arguments.seed)
    finally:
        shared.stopped.set()
        for actor in actors:
            actor.join()
    sys.exit(0 if solved else 1)


if __name__ == "__main__":
    main()
