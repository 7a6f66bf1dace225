"""``cifar-tl train`` for a clone, installed or not."""

import sys

from cifar_tl.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
