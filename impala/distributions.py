"""Action distributions: what a network's policy outputs mean, for choices and for real numbers.

Both sides compute log-probabilities here, the actor of the policy that acted and the learner of the one that learns, so that at
lag 0 their ratio is 1.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from impala.specs import ActionSpec

# The logit of an action that a mask forbids. Finite, so that its probability is exactly 0 but p log p is 0 and not NaN.
FORBIDDEN = -1e9

# A policy surer than this, or less sure, gains nothing and overflows ratios.
LOG_STD_RANGE = (-5.0, 2.0)


class ActionDistribution(ABC):
    """A family of distributions over actions, its members given by `policy`, [..., num_outputs].

    Attributes:
        num_outputs: how many numbers a network gives for one decision.
    """

    num_outputs: int

    @abstractmethod
    def log_prob(self, policy: Tensor, actions: Tensor) -> Tensor:
        """Returns log pi(a|x), [...], in nats, summed over the parts of an action, [..., *shape]. The gradient flows to policy."""

    @abstractmethod
    def entropy(self, policy: Tensor) -> Tensor:
        """Returns the entropy, [...], in nats, summed over the parts of an action; differential for real numbers."""

    def sample(self, policy: Tensor, generator: torch.Generator) -> Tensor:
        """Returns actions, [..., *shape], drawn from the policy."""
        return self.choose(policy, self.noise(policy.shape[:-1], generator))

    @abstractmethod
    def noise(self, leading: Sequence[int], generator: torch.Generator) -> Tensor:
        """Returns chance, [*leading, ...], for `choose`; for the steps of an unroll it is drawn at once."""

    @abstractmethod
    def choose(self, policy: Tensor, noise: Tensor) -> Tensor:
        """Returns actions, [..., *shape], drawn from the policy by `noise` of the same leading axes."""

    @abstractmethod
    def mode(self, policy: Tensor) -> Tensor:
        """Returns the most probable actions, [..., *shape]."""

    @abstractmethod
    def mask(self, policy: Tensor, action_mask: Tensor) -> Tensor:
        """Returns `policy` with forbidden actions made impossible.

        Args:
            action_mask: [..., num_outputs] bool, true where allowed. A choice all of whose options are forbidden, as after the end
                of an episode, is left as it is.
        """


class Categorical(ActionDistribution):
    """k independent choices; `policy` is their logits, one after the other. A single one is a Discrete space of scalars."""

    def __init__(self, sizes: tuple[int, ...], *, single: bool) -> None:
        self.num_outputs = sum(sizes)
        self._sizes = sizes
        self._single = single

    def log_prob(self, policy: Tensor, actions: Tensor) -> Tensor:
        if self._single:
            return policy.log_softmax(-1).gather(-1, actions.unsqueeze(-1)).squeeze(-1)
        chosen = [
            logits.log_softmax(-1).gather(-1, actions[..., index : index + 1]) for index, logits in enumerate(self._split(policy))
        ]
        return torch.cat(chosen, -1).sum(-1)

    def entropy(self, policy: Tensor) -> Tensor:
        parts = []
        for logits in self._split(policy):
            log_probs = logits.log_softmax(-1)
            parts.append(-(log_probs.exp() * log_probs).sum(-1))
        return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)

    def noise(self, leading: Sequence[int], generator: torch.Generator) -> Tensor:
        # The argmax of logits + Gumbel noise is a draw from softmax(logits), without a distribution object.
        return torch.empty(*leading, self.num_outputs).exponential_(generator=generator).log_().neg_()

    def choose(self, policy: Tensor, noise: Tensor) -> Tensor:
        return self.mode(policy + noise)

    def mode(self, policy: Tensor) -> Tensor:
        if self._single:
            return policy.argmax(-1)
        return torch.stack([logits.argmax(-1) for logits in self._split(policy)], -1)

    def mask(self, policy: Tensor, action_mask: Tensor) -> Tensor:
        parts = []
        for logits, allowed in zip(self._split(policy), self._split(action_mask), strict=True):
            forbidden = ~allowed & allowed.any(-1, keepdim=True)
            parts.append(logits.masked_fill(forbidden, FORBIDDEN))
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)

    def _split(self, policy: Tensor) -> tuple[Tensor, ...]:
        return (policy,) if len(self._sizes) == 1 else policy.split_with_sizes(self._sizes, -1)


class Gaussian(ActionDistribution):
    """Independent normal distributions; `policy` is their means, then the logarithms of their standard deviations.

    The log-probability is of the sample as drawn; that the environment clips it at its bounds is the environment's affair.
    """

    def __init__(self, dimensions: int) -> None:
        self.num_outputs = 2 * dimensions

    def log_prob(self, policy: Tensor, actions: Tensor) -> Tensor:
        mean, log_std = self._split(policy)
        z = (actions - mean) * torch.exp(-log_std)
        return (-0.5 * z.square() - log_std - 0.5 * math.log(2 * math.pi)).sum(-1)

    def entropy(self, policy: Tensor) -> Tensor:
        _, log_std = self._split(policy)
        return (log_std + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)

    def noise(self, leading: Sequence[int], generator: torch.Generator) -> Tensor:
        return torch.empty(*leading, self.num_outputs // 2).normal_(generator=generator)

    def choose(self, policy: Tensor, noise: Tensor) -> Tensor:
        mean, log_std = self._split(policy)
        return mean + noise * log_std.exp()

    def mode(self, policy: Tensor) -> Tensor:
        return self._split(policy)[0]

    def mask(self, policy: Tensor, action_mask: Tensor) -> Tensor:
        raise AssertionError("the environment's spec has no masks for real numbers")

    def _split(self, policy: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = policy.chunk(2, -1)
        return mean, log_std.clamp(*LOG_STD_RANGE)


def action_distribution(actions: ActionSpec) -> ActionDistribution:
    """Returns the distribution over a space's actions."""
    if actions.is_continuous:
        return Gaussian(actions.dimensions)
    return Categorical(actions.sizes, single=actions.single)
