"""File descriptors: enough for the connections that may be, and some that these cannot take."""

import resource

from impala.errors import ConfigError

# Ports with a limit of their own: the one that actors call, and that of local actors.
_PORTS = 2
# For checkpoints, metrics, probes, pipes to local actors and what libraries open.
_KEPT = 512


def make_room_for(connections: int) -> int:
    """Returns how many connections each port may have: as many as asked for, or fewer where the system grants fewer files.

    Raises the process's limit as far as that takes.

    Raises:
        ConfigError: the system grants too few for any.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _PORTS * connections + _KEPT
    granted = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < granted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (granted, hard))
    most = (granted - _KEPT) // _PORTS
    if most < 1:
        raise ConfigError(f"max_connections: expected a system that grants {_KEPT + _PORTS} open files or more, came {granted}")
    return most
