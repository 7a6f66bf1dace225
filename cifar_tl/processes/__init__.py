"""Several processes that do one work: torchrun's manners."""
