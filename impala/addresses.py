"""Network addresses as users write them."""

import re

from impala.errors import ConfigError

# Where what is sent stays within one machine.
LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]"})


def split_address(address: str, *, field: str) -> tuple[str, int]:
    """Returns host and port of HOST:PORT; an IPv6 host stands in brackets. `field` is the setting that it is of.

    Raises:
        ConfigError: it has another form.
    """
    match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^:\s]+):([0-9]{1,5})", address)
    if not match or int(match[2]) > 65_535:
        raise ConfigError(f"{field}: expected HOST:PORT, came {address!r}")
    return match[1], int(match[2])
