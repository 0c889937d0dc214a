"""Action distributions: held against torch.distributions, and what a mask forbids never happens."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, Normal

from impala.distributions import ActionDistribution, action_distribution
from impala.specs import ActionSpec, discrete

SPACES = {
    "a choice": discrete(4),
    "a choice with an axis": ActionSpec(sizes=(4,)),
    "choices": ActionSpec(sizes=(4, 2, 3)),
    "real numbers": ActionSpec(dimensions=3),
}
CHOICES = [name for name, space in SPACES.items() if space.sizes]
SHAPE = (5, 2)


def make_policy(space: ActionSpec, shape: tuple[int, ...] = SHAPE) -> tuple[ActionDistribution, Tensor]:
    """Returns a space's distribution and random outputs of a network for it, [*shape, num_outputs], which take a gradient."""
    distribution = action_distribution(space)
    policy = torch.randn(*shape, distribution.num_outputs, generator=torch.Generator().manual_seed(0))
    return distribution, policy.requires_grad_()


def marginals(space: ActionSpec, policy: Tensor) -> list[Categorical]:
    return [Categorical(logits=logits) for logits in torch.split(policy, list(space.sizes), -1)]


def make_mask(space: ActionSpec) -> Tensor:
    """Returns a mask, [*SHAPE, num_outputs], that forbids the first option of every choice, and the last of the first choice."""
    mask = torch.ones(*SHAPE, sum(space.sizes), dtype=torch.bool)
    first = [sum(space.sizes[:index]) for index in range(len(space.sizes))]
    mask[..., [*first, space.sizes[0] - 1]] = False
    return mask


def expected_log_prob(space: ActionSpec, policy: Tensor, actions: Tensor) -> Tensor:
    if space.is_continuous:
        mean, log_std = policy.chunk(2, -1)
        return Independent(Normal(mean, log_std.exp()), 1).log_prob(actions)
    parts = actions.reshape(*SHAPE, len(space.sizes)).unbind(-1)
    return torch.stack([part.log_prob(action) for part, action in zip(marginals(space, policy), parts, strict=True)]).sum(0)


def expected_entropy(space: ActionSpec, policy: Tensor) -> Tensor:
    if space.is_continuous:
        mean, log_std = policy.chunk(2, -1)
        return Independent(Normal(mean, log_std.exp()), 1).entropy()
    return torch.stack([part.entropy() for part in marginals(space, policy)]).sum(0)


@pytest.mark.parametrize("name", SPACES)
def test_log_prob_and_its_gradient_are_those_of_torch(name: str) -> None:
    distribution, policy = make_policy(SPACES[name])
    actions = distribution.sample(policy.detach(), torch.Generator().manual_seed(1))
    log_prob, expected = distribution.log_prob(policy, actions), expected_log_prob(SPACES[name], policy, actions)
    assert log_prob.shape == SHAPE
    torch.testing.assert_close(log_prob, expected)
    torch.testing.assert_close(*(torch.autograd.grad(each.sum(), policy) for each in (log_prob, expected)))


@pytest.mark.parametrize("name", SPACES)
def test_entropy_and_its_gradient_are_those_of_torch(name: str) -> None:
    distribution, policy = make_policy(SPACES[name])
    entropy, expected = distribution.entropy(policy), expected_entropy(SPACES[name], policy)
    assert entropy.shape == SHAPE
    torch.testing.assert_close(entropy, expected)
    torch.testing.assert_close(*(torch.autograd.grad(each.sum(), policy) for each in (entropy, expected)))


@pytest.mark.parametrize("name", SPACES)
def test_samples_and_mode_are_actions_of_the_space(name: str) -> None:
    space = SPACES[name]
    distribution, policy = make_policy(space)
    for actions in (distribution.sample(policy.detach(), torch.Generator()), distribution.mode(policy.detach())):
        assert actions.shape == SHAPE + space.shape
        assert actions.numpy().dtype == space.dtype


@pytest.mark.parametrize("name", SPACES)
def test_the_mode_is_the_most_probable_of_many_samples(name: str) -> None:
    distribution, policy = make_policy(SPACES[name])
    best = distribution.log_prob(policy, distribution.mode(policy))
    generator = torch.Generator().manual_seed(2)
    for _ in range(50):
        assert (distribution.log_prob(policy, distribution.sample(policy.detach(), generator)) <= best).all()


@pytest.mark.parametrize("name", CHOICES)
def test_choices_are_drawn_as_often_as_they_are_probable(name: str) -> None:
    space, count = SPACES[name], 40_000
    distribution, policy = make_policy(space, ())
    actions = distribution.sample(policy.detach().expand(count, -1), torch.Generator().manual_seed(3)).reshape(count, -1)
    for part, drawn in zip(marginals(space, policy.detach()), actions.unbind(-1), strict=True):
        frequencies = torch.bincount(drawn, minlength=part.probs.shape[-1]) / count
        # Five standard deviations of the widest frequency.
        torch.testing.assert_close(frequencies, part.probs, atol=5 * 0.5 / math.sqrt(count), rtol=0.0)


def test_choices_made_at_once_are_drawn_independently() -> None:
    distribution, count = action_distribution(ActionSpec(sizes=(2, 2))), 40_000
    actions = distribution.sample(torch.zeros(count, 4), torch.Generator().manual_seed(4))
    pairs = torch.bincount(actions @ torch.tensor([2, 1]), minlength=4) / count
    torch.testing.assert_close(pairs, torch.full((4,), 0.25), atol=0.0125, rtol=0.0)


def test_real_numbers_are_drawn_around_the_mean_with_the_deviation() -> None:
    distribution, count = action_distribution(ActionSpec(dimensions=2)), 40_000
    policy = torch.tensor([3.0, -1.0, math.log(0.5), math.log(2.0)])
    samples = distribution.sample(policy.expand(count, -1), torch.Generator().manual_seed(5))
    torch.testing.assert_close(samples.mean(0), torch.tensor([3.0, -1.0]), atol=0.05, rtol=0.0)
    torch.testing.assert_close(samples.std(0), torch.tensor([0.5, 2.0]), atol=0.0, rtol=0.03)


def test_the_same_generator_draws_the_same_actions() -> None:
    for space in SPACES.values():
        distribution, policy = make_policy(space)
        one, other = (distribution.sample(policy.detach(), torch.Generator().manual_seed(6)) for _ in range(2))
        assert torch.equal(one, other)


@pytest.mark.parametrize(("log_std", "clipped"), [(-40.0, -5.0), (40.0, 2.0)])
def test_a_deviation_is_kept_within_what_a_ratio_can_hold(log_std: float, clipped: float) -> None:
    distribution = action_distribution(ActionSpec(dimensions=1))
    policies = torch.tensor([[0.5, log_std], [0.5, clipped]])
    for values in (
        distribution.entropy(policies),
        distribution.log_prob(policies, torch.tensor([[0.6], [0.6]])),
        torch.stack([distribution.sample(policy, torch.Generator().manual_seed(7)) for policy in policies]),
    ):
        assert torch.isfinite(values).all()
        assert torch.equal(values[0], values[1])


# --- Masks


@pytest.mark.parametrize("name", CHOICES)
def test_forbidden_actions_have_no_probability_and_the_rest_is_renormalised(name: str) -> None:
    space = SPACES[name]
    distribution, policy = make_policy(space)
    mask = make_mask(space)
    masked = distribution.mask(policy, mask)
    for part, whole, allowed in zip(
        marginals(space, masked), marginals(space, policy), torch.split(mask, list(space.sizes), -1), strict=True
    ):
        assert (part.logits.exp()[~allowed] == 0.0).all()
        rest = whole.probs * allowed
        torch.testing.assert_close(part.probs, rest / rest.sum(-1, keepdim=True))


@pytest.mark.parametrize("name", CHOICES)
def test_the_entropy_under_a_mask_is_that_of_the_rest(name: str) -> None:
    space = SPACES[name]
    distribution, policy = make_policy(space)
    mask = make_mask(space)
    expected = torch.zeros(SHAPE)
    for part, allowed in zip(marginals(space, policy), torch.split(mask, list(space.sizes), -1), strict=True):
        rest = part.logits[allowed].reshape(*SHAPE, -1)  # as many are forbidden everywhere
        expected = expected + Categorical(logits=rest).entropy()
    torch.testing.assert_close(distribution.entropy(distribution.mask(policy, mask)), expected)


@pytest.mark.parametrize("name", CHOICES)
def test_forbidden_actions_are_neither_drawn_nor_the_mode(name: str) -> None:
    space = SPACES[name]
    distribution, policy = make_policy(space)
    # The network likes nothing better than what is forbidden.
    mask = make_mask(space)
    masked = distribution.mask(policy.detach() + 50.0 * ~mask, mask)
    generator = torch.Generator().manual_seed(8)
    drawn = [distribution.sample(masked, generator) for _ in range(100)]
    for actions in (*drawn, distribution.mode(masked)):
        parts = actions.reshape(*SHAPE, -1).unbind(-1)
        for part, allowed in zip(parts, torch.split(mask, list(space.sizes), -1), strict=True):
            assert allowed.gather(-1, part.unsqueeze(-1)).all()


@pytest.mark.parametrize("name", CHOICES)
def test_gradients_under_a_mask_are_finite_and_none_for_what_is_forbidden(name: str) -> None:
    space = SPACES[name]
    distribution, policy = make_policy(space)
    mask = make_mask(space)
    masked = distribution.mask(policy, mask)
    actions = distribution.mode(masked)
    (distribution.log_prob(masked, actions) + distribution.entropy(masked)).sum().backward()
    assert policy.grad is not None
    assert torch.isfinite(policy.grad).all()
    assert (policy.grad[~mask] == 0.0).all()
    assert (policy.grad[mask] != 0.0).any()


@pytest.mark.parametrize("name", CHOICES)
def test_a_choice_that_is_forbidden_altogether_is_left_as_it_is(name: str) -> None:
    space = SPACES[name]
    distribution, policy = make_policy(space)
    mask = make_mask(space)
    mask[2, 1, : space.sizes[0]] = False
    masked = distribution.mask(policy, mask)
    assert torch.equal(masked[2, 1, : space.sizes[0]], policy[2, 1, : space.sizes[0]])
    # The other choices of that row, and the other rows, are masked all the same.
    mask[2, 1, : space.sizes[0]] = True
    assert torch.equal(masked, distribution.mask(policy, mask))


def test_real_numbers_have_no_mask() -> None:
    distribution, policy = make_policy(SPACES["real numbers"])
    with pytest.raises(AssertionError, match="no masks for real numbers"):
        distribution.mask(policy, torch.ones_like(policy, dtype=torch.bool))
