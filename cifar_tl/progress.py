"""Progress bars on standard error, or in a notebook."""

from collections.abc import Iterable
from typing import TypeVar

from tqdm.auto import tqdm

Item = TypeVar("Item")


def with_bar(items: Iterable[Item], text: str | None, total: int | None = None) -> Iterable[Item]:
    """Passes items on and shows how far it is; with no text, there is no bar."""
    if text is None:  # even an invisible bar would start a thread
        return items
    bar: Iterable[Item] = tqdm(items, text, total, leave=False, ascii=True)
    return bar
