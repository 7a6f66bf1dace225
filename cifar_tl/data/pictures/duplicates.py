"""Finds the same image on both sides of a split, or in two classes."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations

from torch import Tensor

from cifar_tl.data.pictures.find import TEST, TRAIN, VALIDATION
from cifar_tl.names import count

PARTS_OF_A_SPLIT = {TRAIN: "training", VALIDATION: "validation", TEST: "test"}


def find_duplicates(images: Tensor, samples: Sequence[tuple[str, str, int]]) -> list[str]:
    """Finds images that are there twice, and so make an accuracy wrong.

    Images are compared as the network sees them, pixel by pixel.

    Args:
        images: ``(N, 3, 32, 32)`` uint8.
        samples: The part, path and label of each image.

    Returns:
        Lines for the owner of the images.
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
                f"{len(pairs)} of {total:,} {these} images {'is' if len(pairs) == 1 else 'are'} "
                f"also among the {others} images, such as {' and '.join(pairs[0])}: the {these} "
                "accuracy says too much"
            )
    ambiguous = [group for group in twice if len({label for _, _, label in group}) > 1]
    if ambiguous:
        (_, path, label), *same_image = ambiguous[0]
        elsewhere = next(there for _, there, another in same_image if another != label)
        lines.append(
            f"{count(len(ambiguous), 'image')} {'is' if len(ambiguous) == 1 else 'are'} in two "
            f"classes, such as {path} and {elsewhere}: delete the wrong copy"
        )
    return lines
