"""Progress bars on standard error, or in a notebook."""

import warnings
from collections.abc import Iterable
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
