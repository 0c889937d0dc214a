"""Optimisers in the form that the paper trained with, and the learning rate's schedule."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from impala.config import OptimiserConfig


class PaperRMSprop(torch.optim.Optimizer):
    """RMSProp as in TensorFlow, hence in the paper: epsilon inside the root, the average of squares from 1.

    docs/primer.md, section 8.2.

        average  <- decay average + (1 - decay) g^2           (average starts at 1)
        velocity <- momentum velocity + lr g / sqrt(average + epsilon)
        weights  <- weights - velocity

    torch.optim.RMSprop puts epsilon outside the root and starts the average at 0; with the paper's epsilon of 0.01 (Table G.1)
    that is another step size altogether: at small gradients this form divides by 0.1, that one by 0.01.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], *, lr: float, decay: float, momentum: float, epsilon: float) -> None:
        super().__init__(parameters, {"lr": lr, "decay": decay, "momentum": momentum, "epsilon": epsilon})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Applies one update from the gradients in `.grad`."""
        if closure is not None:
            raise ValueError("closure: expected None, PaperRMSprop takes one gradient a step")
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, float]) -> None:
        state = self.state[parameter]
        if not state:
            state["average"] = torch.ones_like(parameter)
            state["velocity"] = torch.zeros_like(parameter)
        average, velocity = state["average"], state["velocity"]
        average.mul_(group["decay"]).addcmul_(gradient, gradient, value=1.0 - group["decay"])
        velocity.mul_(group["momentum"]).addcdiv_(gradient, (average + group["epsilon"]).sqrt_(), value=group["lr"])
        parameter.sub_(velocity)


def build_optimiser(config: OptimiserConfig, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Returns the optimiser that `config` names, at its starting learning rate."""
    if config.optimiser == "rmsprop":
        return PaperRMSprop(
            parameters,
            lr=config.learning_rate,
            decay=config.rmsprop_decay,
            momentum=config.rmsprop_momentum,
            epsilon=config.rmsprop_epsilon,
        )
    return torch.optim.Adam(parameters, lr=config.learning_rate, eps=config.adam_epsilon, fused=True)


def annealed_learning_rate(config: OptimiserConfig, env_steps: int, total_steps: int) -> float:
    """Returns the learning rate after `env_steps` of `total_steps`: linear to 0 (Table G.1), never below it."""
    if not config.anneal:
        return config.learning_rate
    return config.learning_rate * max(0.0, 1.0 - env_steps / total_steps)
