"""The same image twice: on both sides of a split, or in two classes."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations

from torch import Tensor

from cifar_tl.data.source import TEST, TRAIN, VALIDATION

PARTS_OF_A_SPLIT = {TRAIN: "training", VALIDATION: "validation", TEST: "test"}


def find_duplicates(images: Tensor, samples: Sequence[tuple[str, str, int]]) -> list[str]:
    """Compares images as the network sees them, pixel by pixel.

    Args:
        images: ``(N, 3, 32, 32)`` uint8.
        samples: Part, path and label of each.

    Returns:
        Lines that say what makes accuracies other than they are.
    """
    same = defaultdict(list)  # the samples of each image
    for row, sample in zip(images.flatten(1).numpy(), samples, strict=True):
        same[hashlib.sha256(row.data).digest()].append(sample)
    twice = [group for group in same.values() if len(group) > 1]
    lines = []
    for (other, others), (part, these) in combinations(PARTS_OF_A_SPLIT.items(), 2):
        pairs = [
            (path, next(there for where, there, _ in group if where == other))
            for group in twice
            if any(where == other for where, _, _ in group)
            for where, path, _ in group
            if where == part
        ]
        if pairs:
            total = sum(where == part for where, _, _ in samples)
            lines.append(
                f"{len(pairs)} of {total:,} {these} images are also among the {others} images, "
                f"such as {' and '.join(pairs[0])}: the {these} accuracy says too much"
            )
    for label, group in ((group[0][2], group) for group in twice):
        if odd := [path for _, path, other in group if other != label]:
            number = sum(len({label for _, _, label in group}) > 1 for group in twice)
            lines.append(
                f"{number} image{'s are' if number > 1 else ' is'} in two classes, such as "
                f"{group[0][1]} and {odd[0]}: delete what is wrong"
            )
            break
    return lines
