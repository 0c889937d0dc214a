"""impala-curves: draws runs against each other, from what their directories hold."""

import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import tyro

from impala.errors import ConfigError
from run_directory.comparison import Group, check_comparable, group_runs, read_run
from run_directory.drawing import MOST_LINES, count_lines, draw
from run_directory.files import write_atomically

EXIT_CANNOT_RUN = 2
_FORMS = ("png", "svg")


@dataclass(frozen=True, kw_only=True)
class CurvesConfig:
    """Draws the mean return of runs by agent steps and by seconds: the mean over seeds with its 95% confidence interval."""

    runs: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Run directories. Those that differ in nothing but the seed are drawn as one."""
    group: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """NAME=RUN,RUN,...: run directories to draw as one under a name, whatever they differ in. May be given several times."""
    output: Path = Path("curves")
    """Picture to write: NAME.png, NAME.svg, or NAME for both."""

    def __post_init__(self) -> None:
        if not self.runs and not self.group:
            raise ConfigError("runs: expected at least one run directory, came none")
        for group in self.group:
            name, is_given, paths = group.partition("=")
            if not (name and is_given and all(paths.split(","))):
                raise ConfigError(f"group: expected NAME=RUN,RUN,..., came {group!r}")
        if self.output.suffix[1:] not in ("", *_FORMS):
            raise ConfigError(f"output: expected a name that ends in .png, in .svg, or in neither, came {str(self.output)!r}")

    def outputs(self) -> dict[str, Path]:
        """Returns the files to write by their form."""
        if self.output.suffix:
            return {self.output.suffix[1:]: self.output}
        return {form: self.output.with_name(f"{self.output.name}.{form}") for form in _FORMS}


def compare(config: CurvesConfig) -> list[str]:
    """Writes the pictures; returns what they cannot show, a sentence each.

    Raises:
        ConfigError: a run that cannot be drawn, or not with the others; or a picture cannot be written.
    """
    named = [
        Group(name=name, runs=tuple(read_run(Path(path)) for path in paths.split(",")))
        for name, _, paths in (group.partition("=") for group in config.group)
    ]
    groups = [*group_runs([read_run(path) for path in config.runs]), *named]
    check_comparable([run for group in groups for run in group.runs])
    if (lines := count_lines(groups)) > MOST_LINES:
        raise ConfigError(f"runs: expected at most {MOST_LINES} lines in one picture, came {lines}")
    notes: list[str] = []
    for form, path in config.outputs().items():
        image, notes = draw(groups, form)
        try:
            write_atomically(path, image)
        except OSError as error:
            raise ConfigError(f"output: cannot write to {path}: {error.strerror}") from error
    return notes


def main() -> None:
    """Draws and exits: 0 done, 2 cannot run as asked."""
    try:
        config = tyro.cli(CurvesConfig, prog="impala-curves")
        if find_spec("matplotlib") is None:
            raise ConfigError("not installed here: matplotlib; pip install 'impala-grpc[learner]'")
        notes = compare(config)
    except ConfigError as error:
        print(f"impala-curves: {error}", file=sys.stderr)  # noqa: T201 - the one line that a wrong command line gets
        sys.exit(EXIT_CANNOT_RUN)
    for note in notes:
        print(f"left out: {note}", file=sys.stderr)  # noqa: T201 - what who looks at the picture should know
    for path in config.outputs().values():
        print(path)  # noqa: T201 - this program's output


if __name__ == "__main__":
    main()
