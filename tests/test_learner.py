"""The learner: one step of training, and going on where another learner ended."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from impala.config import LossConfig, OptimiserConfig
from impala.errors import CheckpointError
from impala.losses import ImpalaLoss, impala_loss
from impala.networks import build_network
from impala.unroll import Unroll
from impala.wire import decode_parameters, encode_parameters
from learner_server import learner as learner_module
from learner_server.learner import Learner
from tests.samples import AGENT, SPEC, make_unroll

TOTAL_STEPS = 10_000


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Computes as a learner process does; for such small networks more threads cost most of the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_learner(
    *, seed: int = 0, hidden_sizes: tuple[int, ...] = (16,), normalise: bool = False, version: int = 1, **optimiser: Any
) -> Learner:
    torch.manual_seed(seed)
    config = replace(AGENT.network, hidden_sizes=hidden_sizes, normalise_observations=normalise, normalise_returns=normalise)
    network = build_network(config, SPEC.environment)
    return Learner(
        network,
        LossConfig(),
        OptimiserConfig(**optimiser),
        total_steps=TOTAL_STEPS,
        version=version,
    )


def make_batch(*, seed: int = 0, version: int = 1, **arrays: Any) -> Unroll[np.ndarray]:
    return make_unroll(environments=8, seed=seed, version=version, **arrays)


def weights(learner: Learner) -> dict[str, torch.Tensor]:
    """Returns copies of the weights, and of the running statistics where there are any."""
    return {name: tensor.clone() for name, tensor in learner.network.state_dict().items()}


def assert_same_weights(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert torch.equal(tensor, right[name]), name


def gradient_norm(learner: Learner) -> float:
    gradients = [weight.grad for weight in learner.network.parameters() if weight.grad is not None]
    return float(torch.cat([gradient.flatten() for gradient in gradients]).norm())


@pytest.mark.parametrize("optimiser", ["adam", "rmsprop"])
def test_steps_on_a_fixed_batch_lower_the_loss(optimiser: str) -> None:
    learner = make_learner(optimiser=optimiser, learning_rate=1e-3)
    losses = [float(learner.step(make_batch(), 0).loss.total.detach()) for _ in range(60)]
    assert losses[-1] < 0.6 * losses[0]


def test_every_update_makes_a_new_version() -> None:
    learner = make_learner(version=41)
    seen = []
    for _ in range(3):
        before = weights(learner)
        report = learner.step(make_batch(version=41), 0)
        seen.append((learner.version, learner.updates, report.skipped))
        assert any(not torch.equal(tensor, before[name]) for name, tensor in weights(learner).items())
    assert seen == [(42, 1, False), (43, 2, False), (44, 3, False)]


def with_total(total: str) -> Any:
    """Returns a loss whose value or gradient is not finite while the other is."""

    def loss(network: Any, *arguments: Any, **keywords: Any) -> ImpalaLoss:
        plain = impala_loss(network, *arguments, **keywords)
        if total == "infinite value, finite gradient":
            return replace(plain, total=plain.total + torch.inf)
        weight = next(iter(network.parameters()))
        return replace(plain, total=plain.total + (weight * 0.0).sum().sqrt())  # sqrt'(0) is infinite

    return loss


@pytest.mark.parametrize("total", ["infinite value, finite gradient", "finite value, infinite gradient"])
def test_an_update_that_is_not_finite_is_skipped_and_counted(total: str, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = make_learner(normalise=True)
    learner.step(make_batch(), 0)
    before, optimiser = weights(learner), encode_parameters(learner.optimiser_tensors())
    monkeypatch.setattr(learner_module, "impala_loss", with_total(total))
    report = learner.step(make_batch(), 0)
    assert report.skipped
    assert (learner.version, learner.updates, learner.skipped_updates) == (2, 1, 1)
    assert_same_weights(weights(learner), before)
    assert encode_parameters(learner.optimiser_tensors()) == optimiser


def test_training_goes_on_after_a_skipped_update() -> None:
    learner = make_learner()
    learner.step(make_batch(rewards=np.full((5, 8), 3e38, dtype=np.float32)), 0)
    report = learner.step(make_batch(), 0)
    assert not report.skipped
    assert (learner.version, learner.updates, learner.skipped_updates) == (2, 1, 1)
    assert all(tensor.isfinite().all() for tensor in weights(learner).values())


def test_a_gradient_is_clipped_at_the_largest_norm_allowed() -> None:
    learner = make_learner(max_grad_norm=0.5)
    report = learner.step(make_batch(), 0)
    assert report.grad_norm > 1.0
    assert gradient_norm(learner) == pytest.approx(0.5, rel=1e-4)


def test_a_small_gradient_is_left_as_it_is() -> None:
    learner = make_learner(max_grad_norm=1e6)
    report = learner.step(make_batch(), 0)
    assert gradient_norm(learner) == pytest.approx(report.grad_norm, rel=1e-5)


@pytest.mark.parametrize(
    ("env_steps", "expected"), [(0, 1.0), (TOTAL_STEPS // 4, 0.75), (TOTAL_STEPS, 0.0), (2 * TOTAL_STEPS, 0.0)]
)
def test_the_learning_rate_falls_with_the_steps_trained(env_steps: int, expected: float) -> None:
    learner = make_learner(learning_rate=0.01)
    before = weights(learner)
    report = learner.step(make_batch(), env_steps)
    assert report.learning_rate == pytest.approx(0.01 * expected)
    # The first step of Adam moves each weight by the learning rate, if it has a gradient.
    moved = max(float((tensor - before[name]).abs().max()) for name, tensor in weights(learner).items())
    assert moved == pytest.approx(0.01 * expected, rel=1e-3)


def test_without_annealing_the_learning_rate_stays() -> None:
    learner = make_learner(learning_rate=0.01, anneal=False)
    assert learner.step(make_batch(), TOTAL_STEPS).learning_rate == 0.01


def test_lags_are_the_versions_between_acting_and_learning() -> None:
    learner = make_learner(version=10)
    batch = make_batch(parameter_version=np.array([10, 9, 3, 10, 1, 7, 8, 10], dtype=np.int64))
    assert learner.step(batch, 0).policy_lags.tolist() == [0, 1, 7, 0, 9, 3, 2, 0]
    assert learner.step(batch, 0).policy_lags.tolist() == [1, 2, 8, 1, 10, 4, 3, 1]


def test_statistics_are_those_of_the_batch_after_its_step_and_part_of_the_new_version(monkeypatch: pytest.MonkeyPatch) -> None:
    learner, batch = make_learner(normalise=True), make_batch(resets=((2, 3), (5, 0)))
    before, calls, update = weights(learner), [], learner.network.update_statistics

    def update_statistics(*arguments: Any) -> None:
        calls.append((weights(learner), *arguments))
        update(*arguments)

    monkeypatch.setattr(learner.network, "update_statistics", update_statistics)
    report = learner.step(batch, 0)
    ((at_the_call, observations, is_first, vs, valid, gather),) = calls
    assert gather is None
    assert not any(torch.equal(at_the_call[name], before[name]) for name, _ in learner.network.named_parameters())
    assert all(torch.equal(at_the_call[name], before[name]) for name, _ in learner.network.named_buffers())
    assert any(not torch.equal(buffer, before[name]) for name, buffer in learner.network.named_buffers())
    np.testing.assert_array_equal(observations["observation"], batch.observations["observation"])
    np.testing.assert_array_equal(is_first, batch.is_first)
    np.testing.assert_array_equal(valid, ~batch.is_first[1:])
    assert torch.equal(vs, report.loss.vs)


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("optimiser", ["adam", "rmsprop"])
def test_a_restored_learner_goes_on_bit_by_bit_as_one_that_was_never_interrupted(optimiser: str, normalise: bool) -> None:
    settings: dict[str, Any] = {"optimiser": optimiser, "rmsprop_momentum": 0.9, "normalise": normalise}
    whole = make_learner(**settings)
    for number in range(5):
        whole.step(make_batch(seed=number), 100 * number)
    kept = encode_parameters(whole.network.state_dict()), encode_parameters(whole.optimiser_tensors())
    restored = make_learner(seed=99, version=whole.version, **settings)
    restored.restore(decode_parameters(kept[0]), decode_parameters(kept[1]))
    for number in range(5, 10):
        whole.step(make_batch(seed=number), 100 * number)
        restored.step(make_batch(seed=number), 100 * number)
    assert restored.version == whole.version
    assert_same_weights(weights(restored), weights(whole))
    assert encode_parameters(restored.optimiser_tensors()) == encode_parameters(whole.optimiser_tensors())


def test_a_learner_is_restored_from_a_checkpoint_before_its_first_step() -> None:
    fresh, restored = make_learner(seed=1), make_learner(seed=2)
    restored.restore(weights(fresh), fresh.optimiser_tensors())
    fresh.step(make_batch(), 0)
    restored.step(make_batch(), 0)
    assert_same_weights(weights(restored), weights(fresh))


@pytest.mark.parametrize("hidden_sizes", [(8,), (16, 16), ()])
def test_a_checkpoint_of_another_network_is_refused(hidden_sizes: tuple[int, ...]) -> None:
    other = make_learner(hidden_sizes=hidden_sizes)
    other.step(make_batch(), 0)
    with pytest.raises(CheckpointError, match="another network"):
        make_learner().restore(weights(other), other.optimiser_tensors())


@pytest.mark.parametrize(("own", "others"), [("adam", "rmsprop"), ("rmsprop", "adam")])
def test_a_checkpoint_of_another_optimiser_is_refused(own: str, others: str) -> None:
    other = make_learner(optimiser=others)
    other.step(make_batch(), 0)
    with pytest.raises(CheckpointError, match="another network or optimiser"):
        make_learner(optimiser=own).restore(weights(other), other.optimiser_tensors())


def test_tensors_of_no_optimiser_at_all_are_refused() -> None:
    learner = make_learner()
    with pytest.raises(CheckpointError, match="another network or optimiser"):
        learner.restore(weights(learner), {"nonsense": torch.zeros(1)})


def test_a_step_brings_what_strayed_back_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    learner, before, after = make_learner(), list[torch.Tensor](), list[torch.Tensor]()
    bias = learner.network.policy_head.bias
    monkeypatch.setattr(learner.network, "keep_within_bounds", lambda: after.append(bias.detach().clone()))
    before.append(bias.detach().clone())
    learner.step(make_unroll(), 0)
    assert len(after) == 1
    assert not torch.equal(before[0], after[0])  # of the weights that the optimiser made
