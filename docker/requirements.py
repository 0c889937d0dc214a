"""Prints what pyproject.toml asks for, a line each: `python requirements.py EXTRA,EXTRA`.

So that an image's dependencies are a layer that only pyproject.toml and constraints.txt make anew.
"""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
extras = project["optional-dependencies"]
wanted = [name.strip() for name in sys.argv[1].split(",") if name.strip()]
unknown = sorted(set(wanted) - extras.keys())
if unknown:
    sys.exit(f"EXTRAS: expected of {', '.join(sorted(extras))}, came {', '.join(unknown)}")
print("\n".join(project["dependencies"] + [line for name in wanted for line in extras[name]]))
