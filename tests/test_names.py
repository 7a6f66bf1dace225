import pytest

from cifar_tl.names import printable


@pytest.mark.parametrize(
    ("name", "printed"),
    [
        ("dog", "dog"),
        ("\u00e9t\u00e9 \u72ac", "\u00e9t\u00e9 \u72ac"),
        ("\udce9t", "\\udce9t"),  # a byte that is no UTF-8
        ("a\nb\r\tc\x1b[0m", "a\\nb\\r\\tc\\x1b[0m"),
        ("\u2028", "\\u2028"),
    ],
)
def test_every_name_can_be_printed_in_one_line(name: str, printed: str) -> None:
    assert printable(name) == printed
    assert len(printed.splitlines()) == 1
    assert printed.encode()
