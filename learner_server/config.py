"""The learner's configuration: one frozen dataclass that is also its `--help`."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from impala.addresses import LOOPBACK_HOSTS, split_address
from impala.config import AgentConfig, EnvironmentConfig, LossConfig, NetworkConfig, OptimiserConfig
from impala.environments import Hosting
from impala.errors import ConfigError
from impala.logs import LogFormat


@dataclass(frozen=True, kw_only=True)
class LearnerConfig:
    """Trains one agent by IMPALA from the unrolls that actors send."""

    # What to train.
    env: tuple[str, ...]
    """Gymnasium environment id, for example CartPole-v1, or MODULE:ID for one's own. Several make one agent for many tasks."""
    env_kwargs: str = "{}"
    """Keyword arguments for the environment, as a JSON object; or a JSON array of one object for each environment."""
    wrappers: str = "[]"
    """Wrappers to put around single environments, innermost first: a JSON array of names, or of [name, keyword arguments]; a name
    is one of gymnasium.wrappers, or MODULE:CLASS."""
    life_loss_terminates: bool = True
    """A life lost is worth nothing from there, as in the paper's Atari runs, though the game and its return go on."""
    allow_module: tuple[str, ...] = ()
    """Python modules, or packages of them, with environments, wrappers or networks to import, here and by local actors."""
    vectorization: Literal["auto", "native", "sync", "async"] = "auto"
    """How local actors step environments side by side; see impala-actor."""
    preset: str = ""
    """Named defaults; flags given besides override them. One of: acrobot, atari-cpu, atari-deep, atari-shallow, cartpole,
    halfcheetah, lunarlander, minatar, minatar-multitask, pendulum, recall."""
    total_steps: int = 1_000_000
    """Trained agent steps after which the run ends; the learning rate is annealed over them."""
    stop_at_return: float | None = None
    """End the run when the mean return of the last 100 finished episodes reaches this; exit code 1 if it never does."""
    settle_steps: int = 0
    """Agent steps to go on for once stop-at-return is reached, the learning rate annealed to 0 over them; the run ends if the mean
    return still holds then, and else goes on as before. The weights that reach a return first need not be good themselves."""
    seed: int = 0
    """Seeds the weights and, one by one, the actors."""

    # Where.
    actors: int = 0
    """Local actor processes to start; 0 waits for remote ones."""
    envs: int = 32
    """Environments that an actor steps side by side, unless it chooses otherwise."""
    listen: str = "127.0.0.1:0"
    """HOST:PORT to serve on; port 0 takes a free one. Of several learners (torchrun) on a machine each takes the next port."""
    advertise: str = ""
    """With several learners (torchrun) on several machines: the host name by which actors reach those of this one. Default: as they
    reached the learner that sends them here."""
    token_file: Path | None = None
    """File with the token that actors must show."""
    tls_cert: Path | None = None
    """PEM file with the certificate (chain) to serve TLS with."""
    tls_key: Path | None = None
    """PEM file with the certificate's key, without a password."""
    tls_client_ca: Path | None = None
    """PEM file with the authorities one of which must have issued the certificate that an actor shows: mutual TLS."""
    insecure: bool = False
    """Serve on an address other than loopback without a token or without TLS, on a network that you trust."""
    health: str | None = None
    """HOST:PORT to answer grpc.health.v1 on, and nothing else, in clear and without a token. For probes; see impala-health."""
    metrics: str | None = None
    """HOST:PORT to answer Prometheus on, at /metrics, in clear and without a token."""
    status: str | None = None
    """HOST:PORT to serve the status page on, to browsers. Elsewhere than on loopback it takes a token and TLS, like `listen`; a
    browser asks for the token as a password."""
    run_dir: Path | None = None
    """Where the run is kept; resumes if it holds a checkpoint. Default: runs/ENV-seedN-TIME."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the learner computes."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the learner's matrix products and convolutions; weights, losses and actors stay float32. bfloat16 pays on processors that
    have it. Actor and learner then differ by rounding at lag 0 too, which V-trace corrects like any lag."""
    compile: bool = False
    """Compile the network with torch.compile, which needs a C++ compiler on the machine and takes a minute at the first step."""
    threads: int = 1
    """Threads that a learner step computes with on the CPU."""

    # How unrolls become batches.
    unroll_length: int = 20
    """T: steps in an unroll (Table G.1: 20)."""
    batch_size: int = 32
    """Trajectories in a learner step (Table G.1: 32)."""
    queue_batches: int = 1
    """Batches that may wait before actors do. More hides jitter; every one adds a version of policy lag."""
    when_full: Literal["wait", "drop-oldest"] = "wait"
    """What happens when an unroll comes and these batches are full. wait: its actor waits, and nothing is lost; drop-oldest: it is
    let in at once, and the oldest unrolls of its task that were not taken yet are dropped: actors are never held up, and what is
    trained on is the newest."""
    max_in_flight: int = 2
    """Unrolls that an actor may have under way at once, the one that it collects included. 1: it collects, sends, waits for the
    answer and for new weights, in turn, and policy lag is least; 2: it collects while one waits for its answer."""
    max_on_the_way: int = 16
    """Unrolls that an actor far away may have under way besides, so that it need not wait while they travel. 0: it waits, and
    policy lag is least."""
    compress: bool = True
    """Have actors compress what becomes a quarter smaller by it, as frames do. Not worth it where nothing of an observation repeats
    and the network is fast."""
    max_policy_lag: int = 1000
    """Unrolls of weights that are more versions old than this are dropped."""
    max_envs: int = 1024
    """Most environments that one actor may step. Decides how large a message may be."""
    max_calls_per_second: int = 50
    """Of one actor, those that bring nothing: for each unroll that is accepted two do not count, its own and one for weights. Those
    of a second may be made up for after a pause. More are slowed, then refused."""
    max_actor_mebibytes: int = 256
    """Of one actor's unrolls that wait for a place in the queue. One may wait however large it is."""
    max_line_mebibytes: int = 4096
    """Of all actors' unrolls that wait for a place in the queue."""
    max_connections: int = 4096
    """On the port that actors call, and on that of local actors; more are closed at once. Fewer where the system grants fewer open
    files."""
    replay_fraction: float = 0.0
    """Share of each batch that is drawn from trajectories trained on before (paper, section 5.2.2: 0.5)."""
    replay_unrolls: int = 10_000
    """Trajectories kept for replay, the oldest leaving first (paper: 10,000). Their memory is stated at the start."""
    inject_lag: int = 0
    """For experiments: actors are served weights of so many updates before the newest."""
    deterministic: bool = False
    """Learner and local actors in lockstep: every batch is one unroll of each actor, in the same order, and no actor collects its
    next before that was trained on. Equal seeds then give equal weights, bit for bit, on one machine, if environments do as their
    seeds say and the run is not interrupted. Slower, for actors and learner wait for each other."""

    # What to keep and to show.
    checkpoint_seconds: float = 60.0
    """Between checkpoints; one is also written when the run ends."""
    keep_checkpoints: int = 3
    """Newest checkpoints kept."""
    log_seconds: float = 0.5
    """Between lines of metrics.jsonl; at most 1."""
    wandb: str | None = None
    """Weights & Biases project that also gets what TensorBoard gets, under the same names. Needs the extra `wandb`.
    WANDB_MODE=offline keeps it on this machine."""
    log_format: LogFormat = "human"
    """human: lines for people and a display on a terminal. json: a JSON object a line, of this learner and of local actors."""
    profile: float | None = None
    """Seconds, once training has taken its first steps, for which learner and actors are recorded, at most 600. Makes trace.json in
    the run directory, for ui.perfetto.dev or chrome://tracing."""

    network: NetworkConfig = field(default_factory=NetworkConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)

    def __post_init__(self) -> None:
        given: object = self.env
        if isinstance(given, str):  # whose characters would be taken for ids
            raise ConfigError(f"env: expected a tuple of ids, came {given!r}")
        if not self.env:
            raise ConfigError("env: expected the id of an environment, came none")
        self.environments()
        _at_least(self, 1, "total_steps", "envs", "unroll_length", "batch_size", "queue_batches", "max_in_flight", "threads")
        _at_least(self, 0, "actors", "seed", "max_policy_lag", "settle_steps", "inject_lag", "max_on_the_way")
        _at_least(self, 1, "max_envs", "keep_checkpoints", "replay_unrolls", "max_connections")
        _at_least(self, 1, "max_calls_per_second", "max_actor_mebibytes", "max_line_mebibytes")
        if not 0.0 <= self.replay_fraction < 1.0:
            raise ConfigError(f"replay_fraction: expected at least 0 and below 1, came {self.replay_fraction}")
        if self.replay_fraction and self.fresh_trajectories == self.batch_size:
            raise ConfigError(
                f"replay_fraction: expected a trajectory or more of a batch of {self.batch_size}, one being fresh, "
                f"came {self.replay_fraction}"
            )
        if len(self.env) > 1 and self.stop_at_return is not None:
            raise ConfigError("stop_at_return: expected one environment with it, for the returns of several are not alike")
        if len(self.env) > self.batch_size:
            raise ConfigError(f"batch_size: expected a trajectory for each of {len(self.env)} environments, came {self.batch_size}")
        if 0 < self.actors < len(self.env):
            raise ConfigError(f"actors: expected one for each of {len(self.env)} environments, or 0, came {self.actors}")
        if self.envs > self.max_envs:
            raise ConfigError(f"envs: expected at most max_envs ({self.max_envs}), came {self.envs}")
        if not 0.0 < self.log_seconds <= 1.0:
            raise ConfigError(f"log_seconds: expected more than 0 and at most 1, came {self.log_seconds}")
        if not self.checkpoint_seconds > 0.0:
            raise ConfigError(f"checkpoint_seconds: expected more than 0, came {self.checkpoint_seconds}")
        if self.profile is not None and not 0.0 < self.profile <= 600.0:
            raise ConfigError(f"profile: expected more than 0 and at most 600, came {self.profile}")
        if self.deterministic:
            self._check_deterministic()
        self._check_access()

    @property
    def fresh_trajectories(self) -> int:
        """Trajectories in a batch that were not trained on before."""
        return max(1, self.batch_size - round(self.batch_size * self.replay_fraction))

    def actor_seed(self, index: int, life: int = 0) -> int:
        """Returns the seed of the actor that joined as the `index`-th, from 0; that of its environment e is so many more.

        Args:
            life: sets apart what acts under that index after a restart, of the actor or of the learner, from what did before.
        """
        # Prime strides keep the seeds of an actor's environments, seed + e, apart from every other actor's.
        return (self.seed * 1_000_003 + (index + 1) * 10_007 + life * 15_485_863) % 2**31

    def agent(self) -> AgentConfig:
        """Returns what actors and evaluation need to know."""
        return AgentConfig(environments=self.environments(), network=self.network, unroll_length=self.unroll_length)

    def hosting(self) -> Hosting:
        """Returns how this machine makes environments."""
        return Hosting(vectorization=self.vectorization, allowed_modules=self.allow_module)

    def environments(self) -> tuple[EnvironmentConfig, ...]:
        """Returns the run's tasks."""
        wrappers = self._wrappers()
        return tuple(
            EnvironmentConfig(
                environment_id=environment_id, kwargs=kwargs, wrappers=wrappers, life_loss_terminates=self.life_loss_terminates
            )
            for environment_id, kwargs in zip(self.env, self._env_kwargs(), strict=True)
        )

    def to_json(self) -> dict[str, Any]:
        """Returns the whole configuration as JSON values, for the record."""
        return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(self).items()}

    def _check_deterministic(self) -> None:
        """Raises ConfigError where something would be left to chance."""
        tasks, unrolls = len(self.env), self.actors * self.envs
        demands = {
            "actors": (self.actors >= 1, "at least 1, for only this machine's own actors can be waited for", self.actors),
            "max_in_flight": (
                self.max_in_flight == 1,
                "1, for who collects ahead acts on whatever weights have come",
                self.max_in_flight,
            ),
            "device": (self.device == "cpu", "cpu, for on a GPU the order of sums is left to chance", self.device),
            "threads": (self.threads == 1, "1, for how many threads share a sum may depend on what else runs", self.threads),
            "when_full": (self.when_full == "wait", "wait, for what is dropped depends on who is faster", self.when_full),
            "stop_at_return": (self.stop_at_return is None, "None, for episodes are counted as they come", self.stop_at_return),
        }
        for name, (is_met, expected, came) in demands.items():
            if not is_met:
                raise ConfigError(f"{name}: with deterministic expected {expected}; came {came}")
        if self.actors % tasks:
            raise ConfigError(f"actors: with deterministic expected as many for each of {tasks} environments, came {self.actors}")
        if self.fresh_trajectories != unrolls:
            raise ConfigError(
                f"batch_size: with deterministic expected a batch of one unroll of each actor, which is {self.actors} actors x "
                f"{self.envs} envs = {unrolls} trajectories that are not replayed; came {self.fresh_trajectories}"
            )

    def _check_access(self) -> None:
        host, _ = split_address(self.listen, field="listen")
        if self.health is not None:
            split_address(self.health, field="health")
        if self.metrics is not None:
            split_address(self.metrics, field="metrics")
        if self.status is not None:
            split_address(self.status, field="status")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ConfigError("tls_key: expected --tls-cert and --tls-key together, came one of them")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ConfigError("tls_client_ca: expected --tls-cert and --tls-key with it, for certificates are shown over TLS alone")
        if host not in LOOPBACK_HOSTS and self.token_file is not None and self.tls_cert is None:
            raise ConfigError("token_file: expected --tls-cert and --tls-key with it, for no actor sends a token in clear")
        for name, address in (("listen", self.listen), ("status", self.status)):
            open_to_others = address is not None and split_address(address, field=name)[0] not in LOOPBACK_HOSTS
            if open_to_others and not self.insecure and (self.token_file is None or self.tls_cert is None):
                raise ConfigError(
                    f"{name}: {address} can be reached from other machines; give --token-file, --tls-cert and --tls-key, "
                    "or say --insecure on a network that you trust"
                )

    def _env_kwargs(self) -> list[dict[str, Any]]:
        expected = f"a JSON object, or an array of {len(self.env)} objects"
        kwargs = _parse_json(self.env_kwargs, "env_kwargs", expected)
        each = kwargs if isinstance(kwargs, list) else [kwargs] * len(self.env)
        if len(each) != len(self.env) or not all(isinstance(entry, dict) for entry in each):
            raise ConfigError(f"env_kwargs: expected {expected}, came {self.env_kwargs!r}")
        return each

    def _wrappers(self) -> tuple[tuple[str, Mapping[str, Any]], ...]:
        expected = "a JSON array of names or of [name, keyword arguments]"
        entries = _parse_json(self.wrappers, "wrappers", expected)
        wrappers: list[tuple[str, Mapping[str, Any]]] = []
        for entry in entries if isinstance(entries, list) else [None]:
            match entry:
                case str(name):
                    wrappers.append((name, {}))
                case [str(name), dict(kwargs)]:
                    wrappers.append((name, kwargs))
                case _:
                    raise ConfigError(f"wrappers: expected {expected}, came {self.wrappers!r}")
        return tuple(wrappers)

    def identity(self) -> dict[str, Any]:
        """Returns, as JSON values, what decides what a run learns: a run directory belongs to one such configuration.

        Where it runs, how much it logs and at which return it stops may change from one start to the next. total_steps may
        not: the learning rate is annealed over them.
        """
        return {
            "agent": self.agent().to_json(),
            "seed": self.seed,
            "batch_size": self.batch_size,
            "total_steps": self.total_steps,
            "replay_fraction": self.replay_fraction,
            "replay_unrolls": self.replay_unrolls,
            "inject_lag": self.inject_lag,
            "loss": asdict(self.loss),
            "optimiser": asdict(self.optimiser),
        }


def _at_least(config: LearnerConfig, least: int, *names: str) -> None:
    for name in names:
        if getattr(config, name) < least:
            raise ConfigError(f"{name}: expected at least {least}, came {getattr(config, name)}")


def _parse_json(text: str, field: str, expected: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{field}: expected {expected}, came {text!r} ({error})") from error
