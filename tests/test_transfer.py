"""The learner on a device of its own: nothing too early, nothing twice, and the same weights as on the CPU."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from impala.config import LossConfig, OptimiserConfig
from impala.networks import Network, build_network
from impala.unroll import Unroll
from learner_server.learner import Learner
from learner_server.transfer import CudaTransfer, HostTransfer, Transfer, transfer_to
from tests.device import LateDevice
from tests.network_cases import Case, random_observations, random_starts
from tests.samples import AGENT, SPEC, make_unroll
from tests.test_networks import CASES, B, T
from tests.test_training import STEPS, train

NORMALISED = replace(AGENT.network, normalise_observations=True, normalise_returns=True)
DEVICES = ["late", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"))]


def make_device(kind: str) -> Transfer:
    return LateDevice() if kind == "late" else CudaTransfer(torch.device("cuda"))


def make_learner(transfer: Transfer, *, optimiser: str = "adam", precision: str = "float32", compiles: bool = False) -> Learner:
    torch.manual_seed(0)
    network = build_network(NORMALISED, SPEC.environment).to(transfer.device)
    return Learner(
        network,
        LossConfig(),
        OptimiserConfig(optimiser=optimiser),  # type: ignore[arg-type]
        total_steps=10_000,
        transfer=transfer,
        precision=precision,  # type: ignore[arg-type]
        compiles=compiles,
    )


def batches(count: int, *, spoilt: tuple[int, ...] = ()) -> list[Unroll[np.ndarray]]:
    """Returns batches, some of them with rewards too large to learn from."""
    made = [make_unroll(environments=4, seed=number) for number in range(count)]
    for number in spoilt:
        made[number] = replace(made[number], rewards=np.full_like(made[number].rewards, 3e38))
    return made


def random_batch(case: Case, network: Network) -> Unroll[np.ndarray]:
    """Returns T transitions of B trajectories, as a network of its own acted."""
    observations, starts, memory = random_observations(case.spec, T, B), random_starts(T, B), network.initial_state(B)
    with torch.no_grad():
        policy = network(observations, starts, memory).policy[:-1]
        actions = network.distribution.sample(policy, torch.Generator().manual_seed(0))
        log_probs = network.distribution.log_prob(policy, actions)
    return make_unroll(
        length=T - 1,
        environments=B,
        observations={name: tensor.numpy() for name, tensor in observations.items()},
        is_first=starts.numpy(),
        actions=actions.numpy(),
        behaviour_log_probs=log_probs.numpy(),
        initial_state={name: tensor.numpy() for name, tensor in memory.items()},
    )


def state(learner: Learner) -> dict[str, torch.Tensor]:
    """Returns copies of weights, running statistics and the optimiser's tensors, on the CPU."""
    tensors = {**learner.network.state_dict(), **learner.optimiser_tensors()}
    return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}


def assert_equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor], *, tolerance: float = 0.0) -> None:
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        torch.testing.assert_close(
            tensor, right[name], rtol=tolerance, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


# --- The step


@pytest.mark.parametrize("kind", DEVICES)
@pytest.mark.parametrize("optimiser", ["adam", "rmsprop"])
@pytest.mark.parametrize("spoilt", [(), (0,), (2,), (0, 1, 4)], ids=str)
def test_a_step_on_a_device_is_one_on_the_host(kind: str, optimiser: str, spoilt: tuple[int, ...]) -> None:
    device, host = make_learner(make_device(kind), optimiser=optimiser), make_learner(HostTransfer(), optimiser=optimiser)
    tolerance = 0.0 if kind == "late" else 1e-4
    for number, batch in enumerate(batches(5, spoilt=spoilt)):
        ours, theirs = device.step(batch, number), host.step(batch, number)
        assert ours.skipped == theirs.skipped == (number in spoilt)
        assert ours.learning_rate == theirs.learning_rate
        np.testing.assert_allclose(ours.grad_norm, theirs.grad_norm, rtol=tolerance)
        assert_equal(state(device), state(host), tolerance=tolerance)
    assert (device.version, device.updates, device.skipped_updates) == (host.version, host.updates, host.skipped_updates)


@pytest.mark.parametrize("kind", DEVICES)
def test_a_batch_arrives_whole_though_its_arrays_are_written_again(kind: str) -> None:
    transfer = make_device(kind)
    for number in range(20):
        batch = make_unroll(environments=64, seed=number)
        wanted = batch.rewards.copy()
        moved = transfer.upload(batch)
        batch.rewards[:] = -1.0
        transfer.await_uploads()
        assert np.array_equal((moved.unroll.rewards * 1.0).cpu().numpy(), wanted)


def test_the_weights_that_a_step_reports_are_those_after_it() -> None:
    learner = make_learner(LateDevice())
    report = learner.step(batches(1)[0], 0)
    assert_equal(dict(report.parameters), dict(learner.network.state_dict()))


def test_nothing_in_a_step_asks_the_device_for_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device every number that the host reads stops it until the device has caught up."""
    learner = make_learner(LateDevice())
    learner.step(batches(1)[0], 0)

    def read(_: torch.Tensor) -> None:
        raise AssertionError("the host read a number within the step")

    batch = learner.transfer.upload(batches(1)[0])
    with monkeypatch.context() as patch:
        for name in ("item", "__bool__", "__float__", "__int__", "tolist", "numpy", "cpu"):
            patch.setattr(torch.Tensor, name, read)
        learner.begin_step(batch, 0)
    assert not learner.finish_step().skipped


def test_a_step_is_finished_before_the_next_is_begun() -> None:
    learner = make_learner(LateDevice())
    learner.begin_step(learner.transfer.upload(batches(1)[0]), 0)
    with pytest.raises(AssertionError, match="finish the step before"):
        learner.begin_step(learner.transfer.upload(batches(1)[0]), 0)


# --- The loop


def test_the_next_batch_is_on_its_way_while_the_device_computes(tmp_path: Path) -> None:
    device = LateDevice()
    train(tmp_path, {0: 12}, total_steps=12 * STEPS, transfer=device)
    steps = [["await", f"download {number}", f"upload {number + 1}", f"wait {number}"] for number in (1, 2)]
    assert device.events == ["upload 1", *steps[0], *steps[1], "await", "download 3", "wait 3"]


@pytest.mark.parametrize("spoilt", [0, 5])
def test_a_run_on_a_device_trains_on_the_same_batches_to_the_same_weights(tmp_path: Path, spoilt: int) -> None:
    host = train(tmp_path / "host", {0: 12}, total_steps=12 * STEPS, spoilt=spoilt)
    device = train(tmp_path / "device", {0: 12}, total_steps=12 * STEPS, spoilt=spoilt, transfer=LateDevice())
    assert device.learner.columns() == host.learner.columns()
    assert_equal(state(device.learner), state(host.learner))
    assert device.queue.account() == host.queue.account()


def test_a_batch_that_was_fetched_when_the_run_ended_is_dropped(tmp_path: Path) -> None:
    run = train(tmp_path, {0: 12}, total_steps=4 * STEPS, transfer=LateDevice())
    account = run.queue.account()
    assert (account.trained, account.dropped, account.waiting) == (4 * STEPS, {"run_over": 4 * STEPS}, 4 * STEPS)
    assert account.queued_trajectories == 4


def test_a_batch_that_was_fetched_when_the_run_was_stopped_is_trained_on(tmp_path: Path) -> None:
    run = train(tmp_path, {0: 11}, transfer=LateDevice(), stop_after_lines=0, drain=True)
    assert (run.queue.account().trained, run.queue.account().waiting) == (11 * STEPS, 0)
    assert run.learner.columns() == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11]]


# --- Precision and compilation


@pytest.mark.parametrize("case", CASES)
def test_every_network_trains_in_bfloat16(case: Case) -> None:
    learner = Learner(case.build(), LossConfig(), OptimiserConfig(), total_steps=10_000, precision="bfloat16")
    report = learner.step(random_batch(case, learner.network), 0)
    assert not report.skipped
    assert {tensor.dtype for tensor in learner.network.parameters()} == {torch.float32}
    assert report.loss.total.dtype == report.loss.entropy.dtype == torch.float32


@pytest.mark.parametrize("case", CASES)
def test_policies_and_values_are_float32_whatever_the_torso_was(case: Case) -> None:
    network = case.build()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = network(random_observations(case.spec, T, B), random_starts(T, B), network.initial_state(B))
    assert output.policy.dtype == output.values.dtype == torch.float32


def test_bfloat16_is_near_float32() -> None:
    rough, exact = make_learner(HostTransfer(), precision="bfloat16"), make_learner(HostTransfer())
    norms = [learner.step(batches(1)[0], 0).grad_norm for learner in (rough, exact)]
    assert norms[0] != norms[1]
    assert norms[0] == pytest.approx(norms[1], rel=0.05)


def test_a_compiled_network_is_the_one_that_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **how: asked.append((type(module).__name__, how)))
    learner = make_learner(HostTransfer(), compiles=True)
    assert asked == [("Network", {"dynamic": False})]
    assert "torso.layers.0.weight" in learner.network.state_dict()


# --- The host itself


def test_the_cpu_needs_no_transfer() -> None:
    transfer = transfer_to(torch.device("cpu"))
    assert isinstance(transfer, HostTransfer)
    assert (transfer.device.type, transfer.overlaps) == ("cpu", False)
