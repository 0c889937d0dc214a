"""The actor's configuration: one frozen dataclass that is also its `--help`."""

import re
from dataclasses import dataclass
from pathlib import Path

from impala.errors import ConfigError
from impala.tokens import LOOPBACK_HOSTS


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
    name: str = ""
    """Names this actor among the learner's; default: the host's name and eight random digits."""
    threads: int = 1
    """Threads that inference computes with."""
    end_with_stdin: bool = False
    """End when standard input closes; a learner starts its local actors so, that they end with it."""

    def __post_init__(self) -> None:
        match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^:\s]+):([0-9]{1,5})", self.learner)
        if not match or not 0 < int(match[2]) <= 65_535:
            raise ConfigError(f"learner: expected HOST:PORT, came {self.learner!r}")
        if self.token_file is not None and self.tls_ca is None and match[1] not in LOOPBACK_HOSTS:
            raise ConfigError(f"token_file: would be sent in clear to {self.learner}; give --tls-ca too")
        if self.envs < 0:
            raise ConfigError(f"envs: expected 0 or more, came {self.envs}")
        if self.threads < 1:
            raise ConfigError(f"threads: expected at least 1, came {self.threads}")
