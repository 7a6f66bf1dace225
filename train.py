"""``cifar-tl`` for a clone, installed or not. Without a command first, it is ``cifar-tl train``."""

import sys

try:
    from cifar_tl.__main__ import COMMANDS, start
except ImportError as error:  # Python is too old
    sys.exit(f"{sys.argv[0]}: {error}")

if __name__ == "__main__":
    start(*(() if sys.argv[1:2] and sys.argv[1] in COMMANDS else ("train",)))
