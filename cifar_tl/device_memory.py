"""Whether data fits on a device: it goes there once, or batch by batch."""

import torch
from torch import Tensor


def fits(num_bytes: int, device: torch.device) -> bool:
    """Tells whether a device has room for data, and for as much again to compute with it.

    Only CUDA says how much is free; elsewhere everything is said to fit.
    """
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return 2 * num_bytes <= free


def to_device_if_it_fits(tensor: Tensor, device: torch.device) -> Tensor:
    """Moves data to a device for good, or leaves it where it is."""
    if tensor.device == device or not fits(tensor.nbytes, device):
        return tensor
    return tensor.to(device)
