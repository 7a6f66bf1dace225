"""Several processes: how torchrun starts and ends them."""
