"""The network: inputs, torso, LSTM and heads, over whole unrolls and over single steps."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from impala.distributions import LOG_STD_RANGE, ActionDistribution, action_distribution
from impala.networks.frames import FrameStack
from impala.networks.inputs import Inputs
from impala.networks.lstm import LSTM
from impala.networks.normalisation import Gather, PopArt
from impala.networks.torsos import Torso, orthogonal_linear
from impala.specs import ACTION_MASK, TASK, EntrySpec, EnvironmentSpec

State = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class NetworkOutput:
    """What a network says of T+1 observations of B trajectories.

    Attributes:
        policy: [T+1, B, P] inputs of the action distribution; masked actions are impossible already.
        values: [T+1, B] V(x_t), in units of reward.
    """

    policy: Tensor
    values: Tensor


class Network(nn.Module):
    """A policy and a baseline. The learner calls it on whole unrolls, an actor calls `act` on single steps.

    Args:
        spec: of raw observations, and of actions.
        inputs, frames: what prepares observations.
        make_torso: makes a torso; called twice where the value has one of its own.
        separate_value: whether it has; without an LSTM only.
        lstm_size, forget_bias: H, 0 for no LSTM; and where its forget gates begin.
        action_std: of real-valued actions at the start.
        squash_means: whether their means stay between -1 and 1.
        normalise_returns: whether value targets are normalised, by task.

    Attributes:
        distribution: what the policy's numbers mean.
    """

    distribution: ActionDistribution

    def __init__(
        self,
        spec: EnvironmentSpec,
        *,
        inputs: Inputs,
        frames: FrameStack,
        make_torso: Callable[[], Torso],
        separate_value: bool,
        lstm_size: int,
        forget_bias: float,
        action_std: float,
        squash_means: bool,
        normalise_returns: bool,
    ) -> None:
        assert not (separate_value and lstm_size), "policy and value share an LSTM"
        super().__init__()
        self.distribution = action_distribution(spec.actions)
        self.inputs = inputs
        self._frames = frames
        self._tasks = spec.observations[TASK].categories[0] if TASK in spec.observations else 1
        self._lstm_size = lstm_size
        self._dimensions = spec.actions.dimensions
        self._squash_means = squash_means
        self._dtype = torch.float32
        self._has_state = frames.count > 1 or lstm_size > 0
        self.torso = make_torso()
        self.lstm = LSTM(self.torso.output_size, lstm_size, forget_bias=forget_bias) if lstm_size else None
        features = lstm_size or self.torso.output_size
        # Small, so that the first policy is nearly uniform.
        self.policy_head = orthogonal_linear(features, self._dimensions or self.distribution.num_outputs, gain=0.01)
        if self._dimensions:
            self.log_std = nn.Parameter(torch.full((self._dimensions,), math.log(action_std)))
        self.value_torso = make_torso() if separate_value else None
        self.value_head = orthogonal_linear(features, self._tasks if normalise_returns else 1, gain=1.0)
        self.popart = PopArt(self._tasks) if normalise_returns else None

    @torch.no_grad()
    def keep_within_bounds(self) -> None:
        """Brings deviations of actions back to where they count; part of making the next version of the weights.

        Beyond, `Gaussian` takes the bound in their place, and no gradient would ever bring them back.
        """
        if self._dimensions:
            self.log_std.clamp_(*LOG_STD_RANGE)

    def compute_in(self, dtype: torch.dtype) -> None:
        """From now on computes torsos, LSTM and heads in `dtype`, to which their weights are rounded, as are those loaded later.

        What goes in and what comes out, state and statistics included, stays as it was.
        """
        self._dtype = dtype
        for module in (self.torso, self.value_torso, self.lstm, self.policy_head, self.value_head):
            if module is not None:
                module.to(dtype)

    def initial_state(self, environments: int) -> State:
        """Returns the recurrent state at the start of an episode, entry name to [E, ...]; empty for feed-forward networks."""
        device = self.policy_head.weight.device
        state = self._frames.initial_state(environments, device)
        if self._lstm_size:
            state |= {name: torch.zeros(environments, self._lstm_size, device=device) for name in ("lstm.h", "lstm.c")}
        return state

    def state_spec(self) -> dict[str, EntrySpec]:
        """Returns what one environment's recurrent state looks like, on whatever device the network is."""
        return {
            # NumPy's name of the dtype, by way of no elements: those of the state may be on a device that NumPy cannot read.
            name: EntrySpec(shape=tuple(tensor.shape[1:]), dtype=torch.empty(0, dtype=tensor.dtype).numpy().dtype)
            for name, tensor in self.initial_state(1).items()
        }

    def forward(self, observations: Mapping[str, Tensor], is_first: Tensor, state: State) -> NetworkOutput:
        """Returns policies and values of a whole unroll.

        Args:
            observations: entry name to [T+1, B, ...].
            is_first: [T+1, B] bool; where true the state is zeroed before the observation is consumed.
            state: entry name to [B, ...], before x_0.
        """
        inputs, features, _ = self._unroll(observations, is_first, state)
        policy = self._policy(features, observations.get(ACTION_MASK))
        if self.value_torso is not None:
            features = self.value_torso(inputs).unflatten(0, is_first.shape)
        return NetworkOutput(policy=policy, values=self._values(features, observations))

    def act(self, observations: Mapping[str, Tensor], is_first: Tensor, state: State) -> tuple[Tensor, State]:
        """Returns the policy, [E, P], of one step and the state after it: equal to `forward` on an unroll of single steps.

        Values are not computed.

        Args:
            observations: entry name to [E, ...].
            is_first: [E] bool.
            state: entry name to [E, ...], before these observations.
        """
        if not self._has_state:
            return self._policy(self.torso(self._prepared(observations)), observations.get(ACTION_MASK)), state
        step = {name: tensor.unsqueeze(0) for name, tensor in observations.items()}
        _, features, state = self._unroll(step, is_first.unsqueeze(0), state)
        return self._policy(features.squeeze(0), observations.get(ACTION_MASK)), state

    def value_scale(self, observations: Mapping[str, Tensor]) -> Tensor | None:
        """Returns the standard deviation of the value targets of each observation's task, [T+1, B]; None if not normalised.

        Args:
            observations: entry name to [T+1, B, ...].
        """
        return None if self.popart is None else self.popart.scale(self._task_indices(observations))

    def update_statistics(
        self, observations: Mapping[str, Tensor], is_first: Tensor, vs: Tensor, valid: Tensor, gather: Gather | None = None
    ) -> None:
        """Takes a batch that was learnt from into the running statistics; part of making the next version of the weights.

        Values of given observations stay what they are as far as value targets go. Nothing happens where nothing is normalised.

        Args:
            observations: entry name to [T+1, B, ...]; the last row is left out: it comes again as the next unroll's first.
            is_first: [T+1, B] bool; an episode's last observation counts as any other.
            vs: [T, B] value targets, in units of reward.
            valid: [T, B], true or 1 where they count.
            gather: where several learners train as one, whose batches are taken in together.
        """
        rows = {name: tensor[: vs.shape[0]] for name, tensor in observations.items()}
        self.inputs.update_statistics(rows, gather)
        if self.popart is not None:
            self.popart.update(self.value_head, vs, valid, self._task_indices(rows), gather)

    def _unroll(
        self, observations: Mapping[str, Tensor], is_first: Tensor, state: State
    ) -> tuple[dict[str, Tensor], Tensor, State]:
        """Returns prepared inputs, [T*B, ...], features, [T, B, F], and the state after the last step."""
        after: dict[str, Tensor] = {}
        if self._frames.count > 1:
            observations, after = self._frames.stack(observations, is_first, state)
        inputs = self._prepared({name: tensor.flatten(0, 1) for name, tensor in observations.items()})
        features: Tensor = self.torso(inputs).unflatten(0, is_first.shape)
        if self.lstm is not None:
            h, c = (state[name].to(self._dtype) for name in ("lstm.h", "lstm.c"))
            features, h, c = self.lstm(features, is_first, h, c)
            after |= {"lstm.h": h.float(), "lstm.c": c.float()}
        return inputs, features, after

    def _prepared(self, observations: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.to(self._dtype) for name, tensor in self.inputs.prepare(observations).items()}

    def _policy(self, features: Tensor, action_mask: Tensor | None) -> Tensor:
        # float32, whatever the torso was computed in: probabilities of a policy in bfloat16 would be off by a percent.
        policy: Tensor = self.policy_head(features).float()
        if self._dimensions:
            means = policy.tanh() if self._squash_means else policy
            policy = torch.cat([means, self.log_std.expand_as(means)], -1)
        return policy if action_mask is None else self.distribution.mask(policy, action_mask)

    def _values(self, features: Tensor, observations: Mapping[str, Tensor]) -> Tensor:
        outputs: Tensor = self.value_head(features).float()
        if self.popart is None:
            # The explicit squeeze: a value of [T, B, 1] would broadcast against [T, B] without a word.
            return outputs.squeeze(-1)
        values: Tensor = self.popart(outputs, self._task_indices(observations))
        return values

    def _task_indices(self, observations: Mapping[str, Tensor]) -> Tensor:
        """Returns [T, B] int64; 0 where there is one task."""
        if TASK in observations:
            return observations[TASK].long()
        first = next(iter(observations.values()))
        return torch.zeros(first.shape[:2], dtype=torch.int64, device=first.device)
