"""The first layer's kernels from images alone, without labels: to start from, or to keep."""

import torch
from torch import Tensor, nn

from cifar_tl.freezing import freeze
from cifar_tl.network import CifarNet

COLOUR_WHITENING = 0.25  # of the colours of independent components: 0 none, 1 all
STEPS = 20  # towards the rotation: most of the way
IMAGES = 500  # hold 390,000 patches, and 18,000 that do not overlap
SCALE_BESIDE = 0.5  # of the other layers' weights: frozen kernels cannot shrink instead


@torch.no_grad()
def whiten_first_layer(model: CifarNet, images: Tensor) -> None:
    """Initialises the first layer in place: uncorrelated outputs, their negatives, variance 1.

    Its kernels become the principal components of the images' patches, each divided by the root of
    its variance, and their negatives, since a ReLU keeps only one sign. Variances are those about
    zero, so preprocessing should have brought the mean there; flat images keep less than 1. After
    Jordan 2024, "94% on CIFAR-10 in 3.29 seconds on a single GPU", who freezes these kernels; here
    they go on to train.

    Args:
        model: Its preprocessing is set.
        images: ``(N, 3, 32, 32)``, training images, of which it takes 500, evenly spaced.
    """
    kernels = model.get_parameter("features.conv1.weight")
    size = kernels[0].numel()
    moments = torch.zeros(size, size, dtype=torch.float64)  # which not every device has
    images = _some(images)
    for batch in images.split(100):  # all patches at once would take much memory
        inputs = model.preprocess(batch.to(kernels.device))
        patches = nn.functional.unfold(inputs, kernels.shape[-1])
        patches = patches.transpose(0, 1).flatten(1)
        mean = patches @ patches.t() / patches.shape[1]
        moments += mean.cpu() * (len(batch) / len(images))
    _set_kernels(kernels, _whitening(moments, len(kernels) // 2))


@torch.no_grad()
def separate_first_layer(model: CifarNet, images: Tensor) -> None:
    """Initialises the first layer in place, and freezes it: independent components, and negatives.

    Of the images' patches, with colours that count for more than their small variance, the
    strongest principal components are whitened and rotated, twenty steps towards where each is as
    far from a normal distribution as can be: edges, where principal components are gratings. They
    are good enough to stay; the weights of the other layers are halved. After Bell and Sejnowski
    1997, "The 'independent components' of natural scenes are edge filters"; the rotation is that of
    Hyvarinen 1999, "Fast and robust fixed-point algorithms for independent component analysis".

    Args:
        model: Its preprocessing is set; its other weights are fresh.
        images: ``(N, 3, 32, 32)``, training images, of which it takes 500, evenly spaced.
    """
    kernels = model.get_parameter("features.conv1.weight")
    size = kernels.shape[-1]
    inputs = model.preprocess(_some(images).to(kernels.device)).cpu()
    patches = nn.functional.unfold(inputs, size, stride=size).transpose(0, 1).flatten(1).double()
    colours = patches.view(3, -1)
    variances, axes = torch.linalg.eigh(colours @ colours.t() / colours.shape[1])
    scales = _floored(variances) ** (-COLOUR_WHITENING / 2)
    balance = axes @ scales.diag() @ axes.t()
    balanced = (balance @ colours).view_as(patches)
    whitening = _whitening(balanced @ balanced.t() / balanced.shape[1], len(kernels) // 2)
    rotation = _independent((whitening @ balanced).float()).double()
    every_pixel = torch.eye(size * size, dtype=balance.dtype)
    _set_kernels(kernels, rotation @ whitening @ torch.kron(balance, every_pixel))
    freeze(model.features.get_submodule("conv1"))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.mul_(SCALE_BESIDE)


def _some(images: Tensor) -> Tensor:
    number = min(IMAGES, len(images))
    return images[torch.arange(number) * len(images) // number]


def _whitening(moments: Tensor, number: int) -> Tensor:
    """Finds the strongest so many principal components ``(number, D)``, for variances of 1."""
    variances, components = torch.linalg.eigh(moments)  # in ascending order
    whitening: Tensor = components / _floored(variances).sqrt()
    return whitening[:, -number:].t()


def _floored(variances: Tensor) -> Tensor:
    return variances.clamp_min(1e-4 * float(variances[-1]) + 1e-12)  # for flat images


def _independent(signals: Tensor) -> Tensor:
    """Finds the rotation ``(D, D)`` that makes whitened signals ``(D, M)`` independent."""
    rotation = torch.eye(len(signals))
    for _ in range(STEPS):
        outputs = (rotation @ signals).tanh()
        slopes = (1 - outputs.square()).mean(1)
        step = outputs @ signals.t() / signals.shape[1] - slopes[:, None] * rotation
        left, _, right = torch.linalg.svd(step)
        rotation = left @ right
    return rotation


def _set_kernels(kernels: Tensor, components: Tensor) -> None:
    kernels.copy_(torch.cat([components, -components]).view_as(kernels))
