"""Imports what imports matplotlib, which other tests run as if it were not installed."""

import contextlib
from importlib import import_module

for name in ("lightning", "captum.attr", "torchmetrics"):
    with contextlib.suppress(ImportError):
        import_module(name)
