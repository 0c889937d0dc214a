"""The learner: weights, optimiser and one step of training. Owned by the training thread alone."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from impala.config import LossConfig, OptimiserConfig
from impala.errors import CheckpointError
from impala.losses import ImpalaLoss, impala_loss
from impala.networks import Network
from impala.optimisers import annealed_learning_rate, build_optimiser
from impala.unroll import Unroll

# What each optimiser keeps of a weight.
_OPTIMISER_STATE = {"adam": {"step", "exp_avg", "exp_avg_sq"}, "rmsprop": {"average", "velocity"}}


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """What one learner step did.

    Attributes:
        loss: see `ImpalaLoss`; its tensors are on the learner's device.
        grad_norm: global gradient norm before clipping.
        learning_rate: that was used.
        policy_lags: [B] versions between the weights that acted and those that learnt.
        skipped: loss or gradient was not finite; weights, running statistics and version are as before.
    """

    loss: ImpalaLoss
    grad_norm: float
    learning_rate: float
    policy_lags: np.ndarray
    skipped: bool


class Learner:
    """Trains a network on batches of unrolls.

    Args:
        network: already on `device`.
        total_steps: agent steps over which the learning rate is annealed.
        version: the first version of the weights.
    """

    def __init__(
        self,
        network: Network,
        loss: LossConfig,
        optimiser: OptimiserConfig,
        *,
        total_steps: int,
        device: torch.device,
        version: int = 1,
    ) -> None:
        self.network = network
        self.version = version
        self.updates = 0
        self.skipped_updates = 0
        self._loss_config = loss
        self._optimiser_config = optimiser
        self._total_steps = total_steps
        self.device = device
        self._weights = list(network.parameters())
        self._optimiser = build_optimiser(optimiser, self._weights)

    def step(self, batch: Unroll[np.ndarray], env_steps: int, *, rate_scale: float = 1.0) -> StepReport:
        """Takes one gradient step on a batch and makes the weights, with the network's running statistics, a new version.

        Args:
            batch: [T, B] trajectories, fresh ones and replayed ones alike.
            env_steps: agent steps trained on before this batch, for the schedule.
            rate_scale: multiplies the schedule's learning rate.
        """
        lags = self.version - batch.parameter_version
        unroll = batch.map(lambda array: torch.from_numpy(array).to(self.device))
        learning_rate = rate_scale * annealed_learning_rate(self._optimiser_config, env_steps, self._total_steps)
        for group in self._optimiser.param_groups:
            group["lr"] = learning_rate

        loss = impala_loss(self.network, unroll, self._loss_config, parameter_version=self.version)
        self._optimiser.zero_grad(set_to_none=True)
        loss.total.backward()  # type: ignore[no-untyped-call]
        grad_norm = float(torch.nn.utils.clip_grad_norm_(self._weights, self._optimiser_config.max_grad_norm))
        # A non-finite loss with finite gradients does not exist, but for a loss that overflows in its sum: check both.
        skipped = not (math.isfinite(grad_norm) and math.isfinite(float(loss.total.detach())))
        if skipped:
            self.skipped_updates += 1
        else:
            self._optimiser.step()
            # Statistics are part of the new version, and of none where the step is skipped.
            self.network.update_statistics(unroll.observations, unroll.is_first, loss.vs, loss.valid)
            self.updates += 1
            self.version += 1
        return StepReport(loss=loss, grad_norm=grad_norm, learning_rate=learning_rate, policy_lags=lags, skipped=skipped)

    def optimiser_tensors(self) -> dict[str, Tensor]:
        """Returns the optimiser's tensors, by `<parameter index>.<name>`; they alias the live ones."""
        return {
            f"{index}.{name}": value if isinstance(value, Tensor) else torch.tensor(value)
            for index, state in self._optimiser.state_dict()["state"].items()
            for name, value in state.items()
        }

    def restore(self, parameters: Mapping[str, Tensor], optimiser: Mapping[str, Tensor]) -> None:
        """Takes over the weights, the running statistics among them, and the optimiser's tensors of a checkpoint.

        Raises:
            CheckpointError: they are those of another network or optimiser.
        """
        try:
            self.network.load_state_dict(dict(parameters))
            state: dict[int, dict[str, Any]] = {}
            for key, tensor in optimiser.items():
                index, _, name = key.partition(".")
                state.setdefault(int(index), {})[name] = tensor
            # torch takes over whatever it is given, and fails at the next step or trains on with averages that start anew.
            names = _OPTIMISER_STATE[self._optimiser_config.optimiser]
            if any(index >= len(self._weights) or kept.keys() != names for index, kept in state.items()):
                raise ValueError(f"expected {sorted(names)} for each of {len(self._weights)} weights, came {sorted(optimiser)[:8]}")
            groups = self._optimiser.state_dict()["param_groups"]
            self._optimiser.load_state_dict({"state": state, "param_groups": groups})
        except (RuntimeError, ValueError, KeyError) as error:
            raise CheckpointError(f"checkpoint of another network or optimiser: {error}") from error
