"""Every error that this project raises on purpose, as one tree.

    ImpalaError
    ├── ConfigError            a setting, or a combination of settings, that cannot work
    │   └── UnsupportedSpace   an environment whose observation or action space is not supported
    ├── InvalidMessage         a message from the wire is malformed: a tensor, a count, a value
    ├── Mismatch               a well-formed message that belongs to another run, protocol or process
    ├── EnvironmentFault       an environment that returned what nobody can learn from
    ├── Refused                a peer that refuses for good: retrying cannot help
    ├── Unreachable            a learner that did not answer for as long as it was to be waited for
    ├── CheckpointError        a checkpoint that is torn, corrupt, of another network, or cannot be written
    └── Diverged               training goes on without learning: one update after the other is not finite

Messages name the field, what was expected and what came.
"""


class ImpalaError(Exception):
    """Base of the tree; catch it to catch everything that this project raises on purpose."""


class ConfigError(ImpalaError):
    """A setting, or a combination of settings, that cannot work. Programs print it in one line and exit with code 2."""


class UnsupportedSpace(ConfigError):
    """An environment whose observation or action space is not supported."""


class InvalidMessage(ImpalaError):
    """A message from the wire is malformed.

    Attributes:
        field: the field at fault, as a path in the .proto (`unroll.rewards`).
    """

    def __init__(self, field: str, expected: str, came: str) -> None:
        super().__init__(f"{field}: expected {expected}, came {came}")
        self.field = field


class Mismatch(ImpalaError):
    """A well-formed message that belongs to another run, protocol version or process.

    Attributes:
        field: the field that does not match.
    """

    def __init__(self, field: str, expected: str, came: str) -> None:
        super().__init__(f"{field}: expected {expected}, came {came}")
        self.field = field


class EnvironmentFault(ImpalaError):
    """An environment returned what nobody can learn from. A new one may do better: an actor ends with code 1, not 2."""


class Refused(ImpalaError):
    """A peer that refuses for good; retrying cannot help."""


class Unreachable(ImpalaError):
    """A learner did not answer for as long as it was to be waited for."""


class CheckpointError(ImpalaError):
    """A checkpoint that is torn, corrupt, of another network, or cannot be written."""


class Diverged(ImpalaError):
    """Training goes on without learning: one update after the other is not finite."""
