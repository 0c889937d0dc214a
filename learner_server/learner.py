"""The learner: weights, optimiser and one step of training. Owned by the training thread alone."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from impala.config import LossConfig, OptimiserConfig
from impala.errors import CheckpointError
from impala.losses import ImpalaLoss, impala_loss
from impala.networks import Gather, Network
from impala.optimisers import annealed_learning_rate, build_optimiser
from impala.unroll import Unroll
from learner_server.group import Group
from learner_server.journeys import BACKWARD, FORWARD, GIVEN, LOSS, OPTIMISER
from learner_server.transfer import DeviceBatch, HostTransfer, Transfer

# Names beside those of the weights, none of which holds a blank.
_GRAD_NORM, _FINITE = "grad norm", "step is finite"

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
        parameters: the weights and running statistics after the step, on the host; good until the next step.
    """

    loss: ImpalaLoss
    grad_norm: float
    learning_rate: float
    policy_lags: np.ndarray
    skipped: bool
    parameters: Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class _Pending:
    """A step that the device may still be at. `first`: it made the optimiser's state."""

    loss: ImpalaLoss
    learning_rate: float
    policy_lags: np.ndarray
    first: bool
    download: Callable[[], Mapping[str, Tensor]]


class Learner:
    """Trains a network on batches of unrolls.

    A step is begun and finished: in between, the device computes and the host is free. Nothing in a step waits for the device but
    its end, where weights and figures come to the host at once.

    Args:
        network: already on the transfer's device.
        total_steps: agent steps over which the learning rate is annealed.
        version: the first version of the weights.
        transfer: moves batches and weights; None for the CPU.
        precision: of matrix products and convolutions; losses, weights and what actors compute stay float32.
        compiles: whether the network is compiled, which takes a minute at the first step.
        group: the learners that take every step together, each on a batch of its own, and come to the same weights.
        on_stage: called when a part of a step has ended, with its name; see `learner_server.journeys`.
    """

    def __init__(
        self,
        network: Network,
        loss: LossConfig,
        optimiser: OptimiserConfig,
        *,
        total_steps: int,
        version: int = 1,
        transfer: Transfer | None = None,
        precision: Literal["float32", "bfloat16"] = "float32",
        compiles: bool = False,
        group: Group | None = None,
        on_stage: Callable[[str], None] | None = None,
    ) -> None:
        self.on_stage = on_stage
        self.network = network
        self.version = version
        self.updates = 0
        self.skipped_updates = 0
        self.transfer = transfer or HostTransfer()
        self._loss_config = loss
        self._optimiser_config = optimiser
        self._total_steps = total_steps
        self._weights = list(network.parameters())
        self._optimiser = build_optimiser(optimiser, self._weights)
        self._precision = precision
        self._pending: _Pending | None = None
        if compiles:
            network.compile(dynamic=False)
        self._group = group or Group()
        self._forward = self._group.wrap(network)

    @property
    def device(self) -> torch.device:
        """Where weights are."""
        return self.transfer.device

    def step(self, batch: Unroll[np.ndarray], env_steps: int, *, rate_scale: float = 1.0, idle: bool = False) -> StepReport:
        """Takes one gradient step on a batch: `begin_step` and `finish_step`."""
        self.begin_step(self.transfer.upload(batch), env_steps, rate_scale=rate_scale, idle=idle)
        return self.finish_step()

    def begin_step(self, batch: DeviceBatch, env_steps: int, *, rate_scale: float = 1.0, idle: bool = False) -> None:
        """Has the device take one gradient step on a batch, if loss and gradient are finite.

        Args:
            batch: [T, B] trajectories, fresh ones and replayed ones alike.
            env_steps: agent steps trained on before this batch, by all learners, for the schedule.
            rate_scale: multiplies the schedule's learning rate.
            idle: the batch is an `idle_unroll`: only the other learners have something to learn from.
        """
        assert self._pending is None, "finish the step before"
        learning_rate = rate_scale * annealed_learning_rate(self._optimiser_config, env_steps, self._total_steps)
        for group in self._optimiser.param_groups:
            group["lr"] = learning_rate

        self.transfer.await_uploads()
        autocast = torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._precision == "bfloat16")
        with self._group.meeting(), autocast:
            forward = self._forward if self.on_stage is None else self._told_forward
            loss = impala_loss(self.network, batch.unroll, self._loss_config, parameter_version=self.version, forward=forward)
        self._tell(LOSS)
        self._optimiser.zero_grad(set_to_none=True)
        with self._group.meeting():
            loss.total.backward()  # type: ignore[no-untyped-call]
        self._tell(BACKWARD)
        grad_norm = torch.nn.utils.clip_grad_norm_(self._weights, self._optimiser_config.max_grad_norm)
        first = not self._optimiser.state
        # A non-finite loss with finite gradients does not exist, but for a loss that overflows in its sum: check both.
        with self._group.meeting():
            finite = self._group.all_true(grad_norm.isfinite() & loss.total.detach().isfinite())
            self._update(batch.unroll, loss, finite, self._group.gather(idle=idle))
        self._tell(OPTIMISER)
        figures = {_GRAD_NORM: grad_norm.detach(), _FINITE: finite}
        self._pending = _Pending(
            loss=loss,
            learning_rate=learning_rate,
            policy_lags=self.version - batch.parameter_version,
            first=first,
            download=self.transfer.download({**self.network.state_dict(), **figures}),
        )
        if self.on_stage is not None and self.transfer.overlaps:
            self.on_stage(GIVEN)

    def finish_step(self) -> StepReport:
        """Waits for the step that was begun, and makes the weights, with the network's running statistics, a new version."""
        assert self._pending is not None, "begin a step before"
        pending, self._pending = self._pending, None
        parameters = dict(pending.download())
        grad_norm, finite = float(parameters.pop(_GRAD_NORM)), bool(parameters.pop(_FINITE))
        if finite:
            self.updates += 1
            self.version += 1
        else:
            self.skipped_updates += 1
            if pending.first:
                self._optimiser.state.clear()
        return StepReport(
            loss=pending.loss,
            grad_norm=grad_norm,
            learning_rate=pending.learning_rate,
            policy_lags=pending.policy_lags,
            skipped=not finite,
            parameters=parameters,
        )

    def _told_forward(self, *inputs: Any) -> Any:
        output = self._forward(*inputs)
        self._tell(FORWARD)
        return output

    def _tell(self, stage: str) -> None:
        # What a device computes while the host goes on has other moments than the host's.
        if self.on_stage is not None and not self.transfer.overlaps:
            self.on_stage(stage)

    def _update(self, unroll: Unroll[Tensor], loss: ImpalaLoss, finite: Tensor, gather: Gather | None) -> None:
        if not self.transfer.overlaps:
            # On the host the answer is there already.
            if finite:
                self._apply(unroll, loss, gather)
            return
        before = self._state()
        kept = [tensor.clone() for tensor in before]
        self._apply(unroll, loss, gather)
        # The host does not know the answer yet, so the device takes back what it must.
        for tensor, old in zip(before, kept, strict=True):
            tensor.copy_(torch.where(finite, tensor, old))

    def _apply(self, unroll: Unroll[Tensor], loss: ImpalaLoss, gather: Gather | None) -> None:
        self._optimiser.step()
        self.network.keep_within_bounds()
        # Statistics are part of the new version, and of none where the step is skipped.
        self.network.update_statistics(unroll.observations, unroll.is_first, loss.vs, loss.valid, gather)

    def _state(self) -> list[Tensor]:
        """Returns every tensor that a step changes."""
        optimiser = [value for state in self._optimiser.state.values() for value in state.values()]
        return [tensor.detach() for tensor in (*self.network.state_dict().values(), *optimiser)]

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
