"""The paper's RMSProp against a literal recursion, and the learning rate's schedule."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from impala.config import OptimiserConfig
from impala.optimisers import PaperRMSprop, annealed_learning_rate, build_optimiser

GRADIENTS = np.random.default_rng(0).normal(size=(20, 3))
START = np.array([1.0, -2.0, 0.5])


def make_parameter(values: np.ndarray = START) -> nn.Parameter:
    return nn.Parameter(torch.as_tensor(values).clone())


def take_steps(optimiser: torch.optim.Optimizer, parameter: nn.Parameter, gradients: np.ndarray) -> np.ndarray:
    """Returns the weights after one step for each gradient."""
    for gradient in gradients:
        parameter.grad = torch.as_tensor(gradient)
        optimiser.step()
    return parameter.detach().numpy().copy()


def literal_rmsprop(gradients: np.ndarray, *, momentum: float) -> np.ndarray:
    """Returns the weights that TensorFlow's RMSProp reaches, lr 0.1, decay 0.9, epsilon 0.01."""
    weights, average, velocity = START.copy(), np.ones(3), np.zeros(3)
    for gradient in gradients:
        average = 0.9 * average + 0.1 * gradient**2
        velocity = momentum * velocity + 0.1 * gradient / np.sqrt(average + 0.01)
        weights = weights - velocity
    return weights


@pytest.mark.parametrize("momentum", [0.0, 0.7])
def test_paper_rmsprop_follows_the_literal_recursion(momentum: float) -> None:
    parameter = make_parameter()
    optimiser = PaperRMSprop([parameter], lr=0.1, decay=0.9, momentum=momentum, epsilon=0.01)
    got = take_steps(optimiser, parameter, GRADIENTS)
    np.testing.assert_allclose(got, literal_rmsprop(GRADIENTS, momentum=momentum), rtol=0.0, atol=1e-12)


def test_the_average_of_squares_starts_at_one() -> None:
    parameter = make_parameter(np.zeros(1))
    optimiser = PaperRMSprop([parameter], lr=1.0, decay=1.0, momentum=0.0, epsilon=1e-12)
    assert take_steps(optimiser, parameter, np.array([[3.0]])).tolist() == pytest.approx([-3.0])


def test_epsilon_is_inside_the_root() -> None:
    parameter = make_parameter(np.zeros(1))
    # The average is next to 0 after this step: 1e-3 is divided by about sqrt(0.01), not by 0.01.
    optimiser = PaperRMSprop([parameter], lr=1.0, decay=0.0, momentum=0.0, epsilon=0.01)
    assert take_steps(optimiser, parameter, np.array([[1e-3]])).tolist() == pytest.approx([-1e-3 / np.sqrt(1e-6 + 0.01)])


def test_paper_rmsprop_is_not_the_one_of_torch() -> None:
    ours, theirs = make_parameter(), make_parameter()
    config = OptimiserConfig(optimiser="rmsprop", learning_rate=0.1)
    first = take_steps(build_optimiser(config, [ours]), ours, GRADIENTS[:1])
    second = take_steps(torch.optim.RMSprop([theirs], lr=0.1, alpha=0.99, eps=0.01), theirs, GRADIENTS[:1])
    # Torch divides by about a tenth of the gradient at its first step, the paper by about 1.
    assert (np.abs(second - START) > 3.0 * np.abs(first - START)).all()


def test_weights_without_a_gradient_stay() -> None:
    used, unused = make_parameter(), make_parameter()
    take_steps(PaperRMSprop([used, unused], lr=0.1, decay=0.9, momentum=0.0, epsilon=0.01), used, GRADIENTS)
    assert unused.detach().numpy().tolist() == START.tolist()


def test_a_closure_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^closure: expected None"):
        PaperRMSprop([make_parameter()], lr=0.1, decay=0.9, momentum=0.0, epsilon=0.01).step(lambda: 0.0)


def test_rmsprop_is_built_with_the_settings_of_the_configuration() -> None:
    config = OptimiserConfig(
        optimiser="rmsprop", learning_rate=0.2, rmsprop_decay=0.8, rmsprop_momentum=0.3, rmsprop_epsilon=0.05, adam_epsilon=0.5
    )
    optimiser = build_optimiser(config, [make_parameter()])
    assert isinstance(optimiser, PaperRMSprop)
    settings = {name: value for name, value in optimiser.param_groups[0].items() if name != "params"}
    assert settings == {"lr": 0.2, "decay": 0.8, "momentum": 0.3, "epsilon": 0.05}


def test_adam_is_built_with_the_settings_of_the_configuration() -> None:
    config = OptimiserConfig(optimiser="adam", learning_rate=0.2, adam_epsilon=0.5, rmsprop_epsilon=0.05)
    optimiser = build_optimiser(config, [make_parameter()])
    assert isinstance(optimiser, torch.optim.Adam)
    assert (optimiser.param_groups[0]["lr"], optimiser.param_groups[0]["eps"]) == (0.2, 0.5)


@pytest.mark.parametrize("name", ["rmsprop", "adam"])
def test_a_restored_optimiser_goes_on_as_if_it_had_never_stopped(name: str) -> None:
    config = OptimiserConfig(optimiser="adam" if name == "adam" else "rmsprop", learning_rate=0.1, rmsprop_momentum=0.5)
    parameter = make_parameter()
    optimiser = build_optimiser(config, [parameter])
    half_way = take_steps(optimiser, parameter, GRADIENTS[:10])
    state = copy.deepcopy(optimiser.state_dict())
    whole = take_steps(optimiser, parameter, GRADIENTS[10:])

    restored = make_parameter(half_way)
    other = build_optimiser(config, [restored])
    other.load_state_dict(state)
    assert take_steps(other, restored, GRADIENTS[10:]).tolist() == whole.tolist()
    # The state matters: without it the same steps lead elsewhere.
    fresh = make_parameter(half_way)
    assert take_steps(build_optimiser(config, [fresh]), fresh, GRADIENTS[10:]).tolist() != whole.tolist()


@pytest.mark.parametrize(("env_steps", "expected"), [(0, 0.4), (25, 0.3), (50, 0.2), (75, 0.1), (100, 0.0)])
def test_the_learning_rate_falls_linearly_to_zero(env_steps: int, expected: float) -> None:
    assert annealed_learning_rate(OptimiserConfig(learning_rate=0.4), env_steps, 100) == pytest.approx(expected)


def test_the_learning_rate_never_falls_below_zero() -> None:
    assert annealed_learning_rate(OptimiserConfig(learning_rate=0.4), 130, 100) == 0.0


def test_the_learning_rate_stays_where_annealing_is_off() -> None:
    assert annealed_learning_rate(OptimiserConfig(learning_rate=0.4, anneal=False), 99, 100) == 0.4
