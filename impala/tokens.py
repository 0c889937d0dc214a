"""The token that actors show to a learner, as both find it: in a file, never on a command line, where `ps` shows it."""

from pathlib import Path

from impala.errors import ConfigError

_LEAST_CHARACTERS = 16


def read_token(path: Path) -> str:
    """Returns the token in a file, without the white space around it.

    Raises:
        ConfigError: the file cannot be read, or holds no token of at least 16 printable ASCII characters.
    """
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"token_file: cannot read {path}: {error}") from error
    if len(token) < _LEAST_CHARACTERS or not token.isascii() or not token.isprintable() or " " in token:
        # The message says what is wrong, and not what the token is.
        raise ConfigError(f"token_file: expected {path} to hold one word of at least {_LEAST_CHARACTERS} ASCII characters")
    return token
