"""Running means and deviations, of observations and of value targets. They are buffers: part of the weights and their version."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

# Returns what every learner of a group gave, side by side on a new first axis: [...] to [learners, ...].
Gather = Callable[[Tensor], Tensor]

# Observations beyond which the statistics follow rather than average. At a million their own error is a thousandth of a deviation,
# while what a better policy gets to see is followed within about a million steps.
MAX_COUNT = 1e6

# Normalised observations are clipped here: an entry that hardly moved so far must not become the only one that is heard.
CLIP = 10.0

# Share of one update in the statistics of value targets. Hessel et al. 2018 take 3e-4 in runs of millions of updates; runs here
# have thousands, in which returns grow a hundredfold.
POPART_RATE = 1e-3

# Range of the deviation of value targets. Hessel et al. 2018 begin at 1e-4; before the first reward, targets differ by the noise of
# the values alone, which must not be blown up to look like a signal.
SCALE_RANGE = (1e-2, 1e6)

# Deviations beyond which a value counts in the statistics as one that lies there. A single one of 1e9, of a simulation that blew
# up, would otherwise leave all that is usual indistinguishable for millions of observations; in a batch of 640 it now adds a
# hundredth to the variance. Statistics that are too small for what comes grow two- to threefold with each update.
FAR = 100.0

# What they are at least taken for there: an entry that has not moved yet has to be let go.
_LEAST_DEVIATION = 1e-4

# Keeps squares of the largest observations within float32.
_MAX_VARIANCE = 1e30


class ObservationStatistics(nn.Module):
    """Mean and variance of float vectors, over all observations so far.

    Buffers: `mean`, `variance` [size]; `count`, [] float32, of observations, at most MAX_COUNT.
    """

    mean: Tensor
    variance: Tensor
    count: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("variance", torch.ones(size))
        self.register_buffer("count", torch.zeros(()))

    def forward(self, vectors: Tensor) -> Tensor:
        """Returns [N, size], of mean 0 and deviation 1, clipped to -CLIP .. CLIP; before the first update as it came, clipped."""
        return ((vectors - self.mean) * (self.variance + 1e-8).rsqrt()).clamp(-CLIP, CLIP)

    @torch.no_grad()
    def update(self, vectors: Tensor, gather: Gather | None = None) -> None:
        """Takes in [N, size], of every learner where there are several; rows that are not finite are left out.

        But for the first time, what is further than FAR deviations from the mean counts as if it were there.
        """
        finite = vectors.isfinite().all(-1, keepdim=True)
        near = _within(vectors.double(), self.mean, self.variance.sqrt().clamp(min=_LEAST_DEVIATION), self.count > 0)
        count, mean, variance = _moments(near, finite.double(), gather)
        count = count[0]  # the same for every entry
        total = self.count + count
        _take_in(self.mean, self.variance, mean, variance, count / total.clamp(min=1.0))
        self.count.copy_(total.clamp(max=MAX_COUNT))


class PixelMeans(nn.Module):
    """Mean of each pixel of images of bytes, over all of them so far: what a screen shows when nothing happens.

    A kernel of a first convolution sees the same background in hundreds of inputs at once, whose weights a step then moves
    together: what little moves on the screen is lost in it. Deviations are left alone: of most pixels they are 0.

    Buffers: `mean` [*shape], in bytes; `count`, [] float32, of images, at most MAX_COUNT.
    """

    mean: Tensor
    count: Tensor

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("count", torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        """Returns float32 images, [N, k, *shape] for k frames, less the mean; as they came before the first update."""
        # In place: one copy of all frames more would be 3% of a small network's step.
        return images.float().sub_(self.mean)

    @torch.no_grad()
    def update(self, images: Tensor, gather: Gather | None = None) -> None:
        """Takes in [N, *shape], of every learner where there are several."""
        everywhere = torch.ones(len(images), 1, dtype=torch.float64, device=images.device)
        count, mean, _ = _moments(images.flatten(1).double(), everywhere, gather)
        total = self.count + count[0]  # the same for every pixel
        self.mean += count[0] / total * (mean.view_as(self.mean) - self.mean)
        self.count.copy_(total.clamp(max=MAX_COUNT))


class PopArt(nn.Module):
    """Mean and deviation of each task's value targets, and the values that keep their meaning when those move.

    The value head says (V - mean) / deviation, a row a task; every change of mean and deviation is made good in its weights (van
    Hasselt et al. 2016, arXiv:1602.07714; Hessel et al. 2018, arXiv:1809.04474, section 3).

    Buffers: `mean`, `variance` [tasks]; `weight` [tasks], what the updates so far weigh in their moving averages, 1 in the end:
    the averages are divided by it, so that the first update counts in full.
    """

    mean: Tensor
    variance: Tensor
    weight: Tensor

    def __init__(self, tasks: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(tasks))
        self.register_buffer("variance", torch.ones(tasks))
        self.register_buffer("weight", torch.zeros(tasks))

    def scale(self, tasks: Tensor) -> Tensor:
        """Returns the deviation of value targets, [...], for task indices, [...]."""
        return self._scales()[tasks]

    def forward(self, outputs: Tensor, tasks: Tensor) -> Tensor:
        """Returns values in units of reward, [...], from the value head's outputs, [..., tasks], and task indices, [...]."""
        chosen = outputs.gather(-1, tasks.unsqueeze(-1)).squeeze(-1)
        return chosen * self.scale(tasks) + self.mean[tasks]

    @torch.no_grad()
    def update(self, head: nn.Linear, vs: Tensor, valid: Tensor, tasks: Tensor, gather: Gather | None = None) -> None:
        """Takes in the targets of one update, and rescales `head` so that values stay what they are.

        Args:
            head: the value head, [number of tasks, features].
            vs: [T, B] value targets; those that are not finite are left out, and but for the first time those that are further than
                FAR deviations from their task's mean count as if they were there.
            valid: [T, B], true or 1 where they count.
            tasks: [T, B] indices. A task that has no target here stays as it is.
            gather: where several learners train as one, whose targets are taken in together.
        """
        old_mean, old_scale = self.mean.clone(), self._scales()
        members = torch.stack([(tasks == task) & valid.bool() & vs.isfinite() for task in range(len(self.mean))], -1).flatten(0, 1)
        near = _within(vs.double().flatten().unsqueeze(-1), old_mean, old_scale, self.weight > 0)
        count, mean, variance = _moments(near, members.double(), gather)
        present = (count > 0).to(self.weight.dtype)
        self.weight += POPART_RATE * (1.0 - self.weight) * present
        share = present * POPART_RATE / self.weight.clamp(min=POPART_RATE)
        _take_in(self.mean, self.variance, mean, variance, share)
        new_scale = self._scales()
        head.weight.mul_((old_scale / new_scale).unsqueeze(-1))
        head.bias.copy_((old_scale * head.bias + old_mean - self.mean) / new_scale)

    def _scales(self) -> Tensor:
        return self.variance.sqrt().clamp(*SCALE_RANGE)


def _within(values: Tensor, mean: Tensor, deviation: Tensor, known: Tensor) -> Tensor:
    """Returns [N, K] values, none further than FAR deviations [K] from the mean [K], where these are known."""
    room = torch.where(known, FAR * deviation.double(), torch.inf)
    return values.clamp(mean.double() - room, mean.double() + room)


def _moments(values: Tensor, members: Tensor, gather: Gather | None) -> tuple[Tensor, Tensor, Tensor]:
    """Returns count, mean and variance over rows, each [groups or columns], of the members: values [N, K], 1 or 0 [N, groups]."""
    count = members.sum(0)
    # Not a product: 0 times infinity is not a number.
    mean = torch.where(members > 0, values, 0.0).sum(0) / count.clamp(min=1.0)
    squares = torch.where(members > 0, values - mean, 0.0).square()
    variance = squares.sum(0) / count.clamp(min=1.0)
    if gather is None:
        return count, mean, variance
    return _of_all(gather(torch.stack([count.expand_as(mean), mean, variance])))


def _of_all(moments: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the moments of all samples from those of parts, [parts, 3, columns]: count, mean and variance (Chan et al. 1979)."""
    counts, means, variances = moments.unbind(1)
    count = counts.sum(0)
    mean = (counts * means).sum(0) / count.clamp(min=1.0)
    return count, mean, (counts * (variances + (means - mean).square())).sum(0) / count.clamp(min=1.0)


def _take_in(mean: Tensor, variance: Tensor, new_mean: Tensor, new_variance: Tensor, share: Tensor) -> None:
    """Makes mean and variance those of a mixture of which new ones are `share`: the parallel update of Chan et al. 1979.

    Unlike a difference of averages, mean of squares less square of the mean, it stands values far from 0.
    """
    difference = new_mean - mean
    spread = share * (new_variance - variance) + share * (1.0 - share) * difference.square()
    mean.copy_(mean + share * difference)
    variance.copy_((variance + spread).clamp(0.0, _MAX_VARIANCE))
