"""The actor's configuration: one frozen dataclass that is also its `--help`."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from actor_client.tls import TLS
from impala.addresses import LOOPBACK_HOSTS, split_address
from impala.environments import Hosting
from impala.errors import ConfigError
from impala.logs import LogFormat


@dataclass(frozen=True, kw_only=True)
class ActorConfig:
    """Takes part in a learner's run: acts in environments with its weights and sends it unrolls."""

    learner: str
    """HOST:PORT of the learner; everything else it tells."""
    envs: int = 0
    """Environments to step side by side; 0 takes the learner's choice."""
    token_file: Path | None = None
    """File with the token that the learner asks for. Sent over TLS, or to this machine itself, and never in clear."""
    tls_ca: Path | None = None
    """PEM file with the certificates to trust; connects by TLS."""
    tls_cert: Path | None = None
    """PEM file with the certificate (chain) to show, where the learner asks actors for one (mutual TLS)."""
    tls_key: Path | None = None
    """PEM file with the certificate's key, without a password."""
    name: str = ""
    """Names this actor among the learner's; default: the host's name and eight random digits."""
    threads: int = 1
    """Threads that inference computes with."""
    vectorization: Literal["auto", "native", "sync", "async"] = "auto"
    """How environments are stepped side by side. native: by the environment's own vector form. sync: one after the other. async: a
    process each, for slow ones. auto: native where there is one, else sync."""
    allow_module: tuple[str, ...] = ()
    """Python modules, or packages of them, with environments, wrappers or networks that this actor may import; a learner can name
    no others."""
    health: str | None = None
    """HOST:PORT to answer grpc.health.v1 on, in clear: SERVING while the learner answers. For probes; see impala-health."""
    log_format: LogFormat = "human"
    """human: lines for people, on standard error. json: a JSON object a line, on standard output."""
    metrics: str | None = None
    """HOST:PORT to answer Prometheus on, at /metrics, in clear and without a token."""
    give_up_seconds: float = 0.0
    """End with code 1 when the learner has not answered for so long; 0: wait for ever."""
    end_with_stdin: bool = False
    """End when standard input closes; a learner starts its local actors so, that they end with it."""

    def __post_init__(self) -> None:
        host, port = split_address(self.learner, field="learner")
        if port == 0:
            raise ConfigError(f"learner: expected a port of at least 1, came {self.learner!r}")
        if self.token_file is not None and self.tls_ca is None and host not in LOOPBACK_HOSTS:
            raise ConfigError(f"token_file: would be sent in clear to {self.learner}; give --tls-ca too")
        if self.health is not None:
            split_address(self.health, field="health")
        if self.metrics is not None:
            split_address(self.metrics, field="metrics")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ConfigError("tls_key: expected --tls-cert and --tls-key together, came one of them")
        if self.tls_cert is not None and self.tls_ca is None:
            raise ConfigError("tls_cert: expected --tls-ca with it, for a certificate is shown over TLS alone")
        if self.envs < 0:
            raise ConfigError(f"envs: expected 0 or more, came {self.envs}")
        if not self.give_up_seconds >= 0.0:
            raise ConfigError(f"give_up_seconds: expected 0 or more, came {self.give_up_seconds}")
        if self.threads < 1:
            raise ConfigError(f"threads: expected at least 1, came {self.threads}")

    def at(self, learner: str) -> "ActorConfig":
        """Returns the same for another learner, HOST:PORT.

        Raises:
            ConfigError: the address is none, or the token would be sent to it in clear.
        """
        return replace(self, learner=learner)

    def tls(self) -> TLS | None:
        """Returns whom to trust and what to show; None for a connection in clear."""
        return None if self.tls_ca is None else TLS(ca=self.tls_ca, certificate=self.tls_cert, key=self.tls_key)

    def hosting(self) -> Hosting:
        """Returns how this machine runs environments."""
        return Hosting(vectorization=self.vectorization, allowed_modules=self.allow_module)
