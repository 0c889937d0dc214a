"""What a learner counts by size as it goes: lags, ratios, the times of its calls and of its own stages, messages."""

import numpy as np

from impala.histogram import Histogram
from impala.losses import ImpalaLoss
from learner_server.learner import StepReport

# Thirds of a decade, from what a call costs at the least to the longest that one may wait.
SECONDS = (1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
BYTES = tuple(float(4**power) for power in range(4, 14))
VERSIONS = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)
# Closest around 1, where equal policies are but for rounding; rho_bar and c_bar are 1 in most runs.
RATIOS = (0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.01, 1.1, 1.25, 1.5, 2.0, 4.0, 10.0)

METHODS = ("Join", "GetParameters", "SubmitTrajectory")
STAGES = ("wait", "step", "publish", "checkpoint")

# exp(10) is far beyond the last bound; without a limit one step in which the policy went astray would make the sum infinite.
_MOST_LOG_RATIO = 10.0


class LearnerHistograms:
    """One learner's, since its process started. The first three are the event loop's to add to, the others training's.

    Attributes:
        rpc: seconds from a call's message to its answer, by method; what was refused included.
        line_wait: seconds that unrolls waited for a place in the queue.
        messages: bytes of each message that came.
        policy_lag: versions between the weights that acted and those that learnt, a trajectory each; replayed ones are not counted.
        ratio: pi/mu of the steps of one batch for each log interval, at most e^10.
        stages: seconds, by stage: waiting for a batch; one learner step; publishing its weights; writing a checkpoint.
    """

    def __init__(self) -> None:
        self.rpc = {method: Histogram(SECONDS) for method in METHODS}
        self.line_wait = Histogram(SECONDS)
        self.messages = Histogram(BYTES)
        self.policy_lag = Histogram(VERSIONS)
        self.ratio = Histogram(RATIOS)
        self.stages = {stage: Histogram(SECONDS) for stage in STAGES}
        self._waited = 0.0
        self._wants_ratios = True

    def add_wait(self, seconds: float, *, over: bool) -> None:
        """Adds time that training waited for a batch; `over`: there is one, and all of the wait for it counts as one."""
        self._waited += seconds
        if over:
            self.stages["wait"].add(self._waited)
            self._waited = 0.0

    def add_step(self, report: StepReport, *, fresh: int | None = None) -> None:
        """Counts the lags of one learner step and, where it is the first of a log interval, its ratios.

        Args:
            fresh: how many of the batch's trajectories, its first, were not replayed; None: none was.
        """
        self.policy_lag.add_many(report.policy_lags[:fresh])
        if self._wants_ratios:
            self._wants_ratios = False
            self.ratio.add_many(ratios(report.loss))

    def start_interval(self) -> None:
        """Has the ratios of the next step counted: they come off the device, which is too dear to do for every step."""
        self._wants_ratios = True


def ratios(loss: ImpalaLoss) -> np.ndarray:
    """Returns pi/mu of a batch's valid steps, [N], at most e^10; steps for which it is no number are left out."""
    log_ratios: np.ndarray = loss.log_ratios.float().masked_select(loss.valid.bool()).cpu().numpy()
    found: np.ndarray = np.exp(log_ratios[~np.isnan(log_ratios)].clip(max=_MOST_LOG_RATIO))
    return found
