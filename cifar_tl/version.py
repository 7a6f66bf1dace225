"""The version, in its one place."""

import functools
import os
import subprocess
from pathlib import Path

__version__ = "0.1.0"


@functools.cache
def commit() -> str | None:
    """Returns the git commit of a clone, with ``-dirty`` after changes. None: there is none."""
    clone = Path(__file__).parents[1]
    if not (clone / ".git").exists():  # an installed package may lie in somebody else's clone
        return None
    command = ["git", "--no-optional-locks", "-C", str(clone), "describe"]
    command += ["--always", "--dirty", "--abbrev=40", "--exclude=*"]  # no tags
    # A hook of git has variables that name another clone.
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        described = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    except (OSError, subprocess.CalledProcessError):  # no git, or not for this user
        return None
    return described.stdout.strip()
