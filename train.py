"""``cifar-tl train`` for a clone, installed or not."""

import sys

try:
    from cifar_tl.__main__ import start
except ImportError as error:  # Python is too old
    sys.exit(f"{sys.argv[0]}: {error}")

if __name__ == "__main__":
    start("train")
