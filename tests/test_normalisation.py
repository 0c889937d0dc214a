"""Running statistics: against NumPy's over everything seen, and value targets against the literal moving average."""

import numpy as np
import pytest
import torch
from torch import nn

from impala.config import NetworkConfig
from impala.networks import Network, build_network
from impala.networks.normalisation import CLIP, MAX_COUNT, POPART_RATE, SCALE_RANGE, ObservationStatistics, PixelMeans, PopArt
from tests.network_cases import entry, make_spec, random_observations, random_starts

TASKS = make_spec(observation=entry("float32", 3), task=entry("uint8", categories=(3,)))


def make_batches(*sizes: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    # Far from 0, where a difference of averages of squares loses every digit.
    return [
        torch.randn(size, 2, generator=generator) * torch.tensor([1.0, 30.0]) + 1000.0 + 20.0 * index
        for index, size in enumerate(sizes)
    ]


def test_observation_statistics_are_those_of_everything_seen() -> None:
    statistics, batches = ObservationStatistics(2), make_batches(7, 1, 300)
    raw = batches[0]
    assert torch.allclose(statistics(raw / 200.0), raw / 200.0)
    for batch in batches:
        statistics.update(batch)
    seen = np.concatenate(batches).astype(np.float64)
    np.testing.assert_allclose(statistics.mean, seen.mean(0), rtol=1e-5)
    np.testing.assert_allclose(statistics.variance, seen.var(0), rtol=1e-4)
    assert statistics.count == 308
    np.testing.assert_allclose(statistics(raw), (raw.numpy() - seen.mean(0)) / seen.std(0), rtol=1e-3, atol=1e-3)


def test_old_observations_fade_once_there_are_a_million() -> None:
    statistics = ObservationStatistics(1)
    statistics.count.fill_(MAX_COUNT)
    statistics.update(torch.full((1000, 1), 50.0))
    assert statistics.count == MAX_COUNT
    np.testing.assert_allclose(statistics.mean, 50.0 * 1000 / (MAX_COUNT + 1000), rtol=1e-5)


def test_one_observation_far_from_all_others_does_not_hide_them() -> None:
    statistics, usual = ObservationStatistics(2), torch.randn(640, 2, generator=torch.Generator().manual_seed(0))
    for _ in range(100):
        statistics.update(usual)
    before = statistics(usual)
    usual[0] = torch.tensor([1e9, -3e38])
    statistics.update(usual)
    assert bool((statistics.variance < 1.3).all())
    torch.testing.assert_close(statistics(usual[1:]), before[1:], rtol=0.15, atol=0.05)


def test_an_entry_that_starts_to_move_is_followed() -> None:
    statistics, generator = ObservationStatistics(1), torch.Generator().manual_seed(0)
    for _ in range(100):
        statistics.update(torch.zeros(640, 1))
    for _ in range(100):
        statistics.update(1000.0 + 5.0 * torch.randn(640, 1, generator=generator))
    # Half of what was seen, so that the deviation is half of the way.
    assert 300.0 < statistics.mean.item() < 500.0
    assert 300.0 < statistics.variance.sqrt().item() <= 502.0


def test_normalised_observations_are_clipped() -> None:
    statistics = ObservationStatistics(2)
    statistics.update(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
    assert statistics(torch.tensor([[1e30, -6.0]])).tolist() == [[CLIP, -CLIP]]


def test_statistics_stay_finite_whatever_comes() -> None:
    statistics = ObservationStatistics(2)
    statistics.update(torch.tensor([[1.0, 2.0], [torch.nan, 2.0], [3.0, torch.inf], [3.0, 6.0]]))
    assert (statistics.mean.tolist(), statistics.variance.tolist(), statistics.count.item()) == ([2.0, 4.0], [1.0, 4.0], 2.0)
    statistics.update(torch.full((4, 2), torch.nan))
    assert (statistics.mean.tolist(), statistics.variance.tolist(), statistics.count.item()) == ([2.0, 4.0], [1.0, 4.0], 2.0)
    statistics.update(torch.tensor([[3e38, -3e38], [-3e38, 3e38]]))
    assert all(bool(tensor.isfinite().all()) for tensor in statistics.state_dict().values())
    assert bool(statistics(torch.tensor([[3e38, 0.0]])).isfinite().all())


def test_pixel_means_are_those_of_all_images_of_every_learner() -> None:
    means, generator = PixelMeans((2, 3)), torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (9, 2, 3), dtype=torch.uint8, generator=generator)
    means.update(images[:4])
    parts = [images[4:6].flatten(1).double(), images[6:].flatten(1).double()]

    def gather(mine: torch.Tensor) -> torch.Tensor:
        """Stands in for a group of two learners, of which this is the first."""
        counts = [torch.full((6,), float(len(part)), dtype=torch.float64) for part in parts]
        of_all = [torch.stack([count, part.mean(0), part.var(0, correction=0)]) for count, part in zip(counts, parts, strict=True)]
        torch.testing.assert_close(mine, of_all[0])
        return torch.stack(of_all)

    means.update(images[4:6], gather)
    seen = images.numpy().astype(np.float64).mean(0)
    np.testing.assert_allclose(means.mean, seen, rtol=1e-5)
    assert means.count == 9
    stack = torch.stack([images[:2], images[2:4]], 1)
    np.testing.assert_allclose(means(stack), stack.numpy() - seen, atol=1e-3)


def test_old_images_fade_once_there_are_a_million() -> None:
    means = PixelMeans((1, 1))
    means.count.fill_(MAX_COUNT)
    means.update(torch.full((1000, 1, 1), 250, dtype=torch.uint8))
    assert means.count == MAX_COUNT
    np.testing.assert_allclose(means.mean, 250.0 * 1000 / (MAX_COUNT + 1000), rtol=1e-5)


def test_the_last_row_of_an_unroll_is_not_seen_twice() -> None:
    spec = make_spec(observation=entry("float32", 3))
    network = build_network(NetworkConfig(normalise_observations=True), spec)
    observations = random_observations(spec, 5, 2)
    network.update_statistics(observations, random_starts(5, 2), torch.zeros(4, 2), torch.ones(4, 2))
    np.testing.assert_allclose(network.inputs.statistics.mean, observations["observation"][:4].mean((0, 1)), rtol=1e-4)


def popart_network() -> Network:
    torch.manual_seed(0)
    return build_network(NetworkConfig(normalise_returns=True), TASKS)


def test_values_stay_what_they_are_when_their_scale_moves_and_each_task_has_its_own() -> None:
    network, is_first = popart_network(), random_starts(6, 4)
    observations = random_observations(TASKS, 6, 4)
    # Task 2 is absent from the targets.
    observations["task"].clamp_(max=1)
    everywhere = random_observations(TASKS, 6, 4, seed=1)
    for step in range(5):
        before = network(everywhere, is_first, {}).values
        vs = torch.randn(5, 4, generator=torch.Generator().manual_seed(step)) * 40.0 - 300.0 * observations["task"][:-1]
        network.update_statistics(observations, is_first, vs, torch.ones(5, 4))
        torch.testing.assert_close(network(everywhere, is_first, {}).values, before, rtol=1e-4, atol=1e-3)
    scale = network.value_scale(everywhere)
    assert scale is not None
    assert network.popart is not None
    torch.testing.assert_close(scale, network.popart.variance.sqrt()[everywhere["task"].long()])
    assert network.popart.variance[2] == 1.0
    assert bool((network.popart.variance[:2] > 100.0).all())
    assert network.popart.mean[1] < -200.0 < network.popart.mean[0]


def test_value_statistics_are_the_bias_corrected_moving_average_of_valid_targets() -> None:
    popart, head, generator = PopArt(2), nn.Linear(3, 2), torch.Generator().manual_seed(0)
    first, second, weight = np.zeros(2), np.zeros(2), np.zeros(2)
    for step in range(6):
        vs = 5.0 * torch.randn(4, 3, generator=generator) + 10.0 * step
        valid = torch.rand(4, 3, generator=generator) < 0.7
        tasks = (torch.rand(4, 3, generator=generator) < 0.5).long() if step % 2 else torch.zeros(4, 3, dtype=torch.int64)
        for task in range(2):
            targets = vs[valid & (tasks == task)].double().numpy()
            if len(targets):
                first[task] += POPART_RATE * (targets.mean() - first[task])
                second[task] += POPART_RATE * ((targets**2).mean() - second[task])
                weight[task] += POPART_RATE * (1.0 - weight[task])
        vs[~valid] = 1e6
        vs[0, 0], valid[0, 0] = (torch.nan, True) if not valid[0, 0] else (vs[0, 0], True)
        popart.update(head, vs, valid, tasks)
    mean = first / weight
    np.testing.assert_allclose(popart.mean, mean, rtol=1e-4)
    np.testing.assert_allclose(popart.variance, second / weight - mean**2, rtol=1e-3)


def test_one_target_far_from_all_others_does_not_hide_them() -> None:
    popart, head, here = PopArt(1), nn.Linear(3, 1), torch.zeros(20, 32, dtype=torch.int64)
    vs = torch.randn(20, 32, generator=torch.Generator().manual_seed(0))
    for _ in range(20):
        popart.update(head, vs, torch.ones(20, 32), here)
    vs[0, 0] = 1e9
    popart.update(head, vs, torch.ones(20, 32), here)
    assert popart.scale(here[0, 0]).item() < 1.5
    # Returns that grow are followed all the same.
    for _ in range(100):
        popart.update(head, 1000.0 * vs.clamp(max=3.0), torch.ones(20, 32), here)
    assert popart.scale(here[0, 0]).item() > 200.0


@pytest.mark.parametrize(("targets", "scale"), [([3.0, 3.0], SCALE_RANGE[0]), ([-1e12, 1e12], SCALE_RANGE[1]), ([-2.0, 2.0], 2.0)])
def test_the_scale_of_values_has_bounds(targets: list[float], scale: float) -> None:
    popart, head = PopArt(1), nn.Linear(3, 1)
    popart.update(head, torch.tensor([targets]), torch.ones(1, 2), torch.zeros(1, 2, dtype=torch.int64))
    assert popart.scale(torch.zeros(1, dtype=torch.int64)).item() == pytest.approx(scale)
    assert bool(head.weight.isfinite().all())


def test_a_scaled_value_head_learns_at_the_scale_of_its_task() -> None:
    popart, outputs = PopArt(2), torch.tensor([[1.0, -2.0]], requires_grad=True)
    popart.mean.copy_(torch.tensor([10.0, 20.0]))
    popart.variance.copy_(torch.tensor([9.0, 16.0]))
    values = popart(outputs.expand(2, 2), torch.tensor([0, 1]))
    assert values.tolist() == [13.0, 12.0]
    values.sum().backward()
    assert outputs.grad is not None
    assert outputs.grad.tolist() == [[3.0, 4.0]]
