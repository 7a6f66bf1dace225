"""Progress bars on standard error, or in a notebook."""

import warnings
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import TypeVar

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message="IProgress")  # without ipywidgets, bars are text
    from tqdm.auto import tqdm

Item = TypeVar("Item")


def with_bar(items: Iterable[Item], text: str | None, total: int | None = None) -> Iterable[Item]:
    """Yields the items and shows a bar with a text before it. Without a text there is no bar."""
    if text is None:  # even an invisible bar starts a thread
        return items
    bar: Iterable[Item] = tqdm(items, text, total, leave=False, ascii=True)
    return bar


def above_bars() -> AbstractContextManager[None]:
    """Makes a context in which lines can be printed. Bars are drawn again below them."""
    mode: AbstractContextManager[None] = tqdm.external_write_mode()
    return mode
