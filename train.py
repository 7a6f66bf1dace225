"""A door for a clone, installed or not: the same as ``cifar-tl train``."""

import sys

from cifar_tl.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
