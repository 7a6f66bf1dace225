"""The built-in images: drawn shapes of ten classes, for machines without CIFAR-10."""

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cifar_tl.data.examples import SIZE, Data, fingerprint_of, labeled_images

NUM_TRAIN, NUM_TEST = 12_000, 2_500

_CHUNK = 500  # images drawn at a time, so that their arrays fit into the processor's cache
_SEED = 20_090_408
_TINT = (1.2, 0.2, 0.7)  # how much a finer shape differs from its background in each channel

Floats: TypeAlias = Any  # float32 arrays; with the type NDArray, each result would need a cast


def _box(u: Floats, v: Floats, half_width: float, half_height: float) -> Floats:
    return np.maximum(np.abs(u) - half_width, np.abs(v) - half_height)


def _disc(u: Floats, v: Floats, radius: float = 0.9) -> Floats:
    return np.hypot(u, v) - np.float32(radius)


def _petals(u: Floats, v: Floats, count: int, depth: float) -> Floats:
    wave = np.cos(np.float32(count) * np.arctan2(v, u))
    return np.hypot(u, v) - (np.float32(1 - depth) + np.float32(depth) * wave)


def _star(u: Floats, v: Floats) -> Floats:
    """A star of five points, which is ten times the same half of a point.

    The edge of a half goes from (1, 0) inwards.
    """
    tenth = np.float32(np.pi / 5)
    angle = np.abs(np.mod(np.arctan2(v, u) + 3.5 * tenth, 2 * tenth) - tenth)
    radius = np.hypot(u, v)
    inner = 0.45 * np.exp(1j * np.pi / 5)
    normal = np.array([inner.imag, 1 - inner.real], np.float32) / np.float32(abs(1 - inner))
    return (radius * np.cos(angle) - 1) * normal[0] + radius * np.sin(angle) * normal[1]


# The signed distance to the edge of each shape; negative inside. Coarse shapes, then finer ones.
_SIGNED_DISTANCES: dict[str, Callable[[Floats, Floats], Floats]] = {
    "disc": _disc,
    "square": lambda u, v: _box(u, v, 0.8, 0.8),
    "triangle": lambda u, v: (
        np.maximum(-v, 0.5 * v + np.float32(np.sqrt(3) / 2) * np.abs(u)) - np.float32(0.55)
    ),
    "cross": lambda u, v: np.minimum(_box(u, v, 1.0, 0.28), _box(u, v, 0.28, 1.0)),
    "bars": lambda u, v: _box(np.abs(u) - np.float32(0.55), v, 0.25, 0.9),
    "clover": lambda u, v: _petals(u, v, 3, 0.3),
    "flower": lambda u, v: _petals(u, v, 5, 0.28),
    "star": _star,
    "gear": lambda u, v: _petals(u, v, 8, 0.15),
    "diamond": lambda u, v: np.float32(0.62) * np.abs(u) + np.float32(0.78) * np.abs(v) - 0.62,
}
CLASS_NAMES = tuple(_SIGNED_DISTANCES)


def read_shapes(*_: object, **__: object) -> Data:
    """Draws the built-in images, for `load_data`."""
    x_train, y_train, x_test, y_test = draw_shapes()
    return Data(
        description="built-in drawn shapes",
        class_names=CLASS_NAMES,
        train=labeled_images(x_train, y_train),
        test=labeled_images(x_test, y_test),
        fingerprint=fingerprint_of(x_train, y_train, x_test, y_test),
        mirror=True,
    )


def draw_shapes(
    num_train: int = NUM_TRAIN, num_test: int = NUM_TEST
) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.uint8], NDArray[np.int64]]:
    """Draws the images. They are the same at every call.

    Position, size, rotation, colours, background, clutter, contrast and noise vary. Some images
    have so little contrast, or so much noise, that nobody sees the shape: no network reaches 100 %.
    The first five shapes are brighter than their background. The other five are finer, and their
    colour differs, too. So features that were trained on the first five help with the others, but
    less than features that were trained on these.

    The classes come in random order. Each class has the same number of images, if the total is a
    multiple of ten.

    Returns:
        Training images ``(num_train, 3, 32, 32)`` uint8 and labels ``(num_train,)`` int64 from 0 to
        9; then test images and labels, likewise.
    """
    random = np.random.default_rng(_SEED)
    total = num_train + num_test
    labels = np.concatenate(
        [random.permutation(np.arange(count) % len(CLASS_NAMES)) for count in (num_train, num_test)]
    )
    images = np.empty((total, 3, SIZE, SIZE), np.uint8)
    for start in range(0, total, _CHUNK):
        images[start : start + _CHUNK] = _draw(labels[start : start + _CHUNK], random)
    return images[:num_train], labels[:num_train], images[num_train:], labels[num_train:]


def _draw(labels: NDArray[np.int64], random: np.random.Generator) -> Any:
    count = len(labels)

    def uniform(low: float, high: float, *shape: int) -> Floats:
        return (low + (high - low) * random.random((count, *shape))).astype(np.float32)

    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float32) - (SIZE - 1) / 2

    # In the coordinates u, v each shape is upright, at the origin, and has a radius of about 1.
    radius = uniform(8, 12, 1, 1)
    angle = uniform(-0.3, 0.3, 1, 1)
    dx = x - uniform(-2, 2, 1, 1)
    dy = y - uniform(-2, 2, 1, 1)
    u = (dx * np.cos(angle) + dy * np.sin(angle)) / radius
    v = (dy * np.cos(angle) - dx * np.sin(angle)) / radius
    distance = np.empty_like(u)
    for label, signed_distance in enumerate(_SIGNED_DISTANCES.values()):
        members = labels == label
        distance[members] = signed_distance(u[members], v[members])
    shape = _coverage(distance * radius)

    # The background: waves from one colour to another, with two small discs.
    direction = uniform(0, 2 * np.pi, 1, 1)
    phase = (x * np.cos(direction) + y * np.sin(direction)) * uniform(0.05, 0.5, 1, 1)
    mixture = 0.5 + 0.5 * np.sin(phase + uniform(0, 2 * np.pi, 1, 1))
    background = uniform(0.1, 0.65, 3, 1, 1)
    image = background + uniform(-0.2, 0.2, 3, 1, 1) * mixture[:, None]
    for _ in range(2):
        size = uniform(1, 3.5, 1, 1)
        clutter = _coverage(np.hypot(x - uniform(-15, 15, 1, 1), y - uniform(-15, 15, 1, 1)) - size)
        image += clutter[:, None] * (uniform(0, 1, 3, 1, 1) - image)

    # The colour of the shape: that of the background, but brighter, or brighter and tinted.
    tints = np.where((labels < 5)[:, None], np.float32(1), np.array(_TINT, np.float32))
    step = uniform(0.02, 0.35, 1, 1, 1) * uniform(0.6, 1.2, 3, 1, 1) * tints[:, :, None, None]
    image += shape[:, None] * (background + step - image)

    noise = random.standard_normal((count, 3, SIZE, SIZE), np.float32)
    image += noise * uniform(0.02, 0.3, 1, 1, 1)
    return (np.clip(image, 0, 1) * 255).round().astype(np.uint8)


def _coverage(distance_in_pixels: Floats) -> Floats:
    """Computes the part of each pixel that is inside: from 0 (outside) to 1 (inside)."""
    return np.clip(0.5 - distance_in_pixels, 0, 1)
