import pytest

from cifar_tl.names import count, numbered, portable, printable


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


def test_a_name_is_the_same_whatever_the_character_set(monkeypatch: pytest.MonkeyPatch) -> None:
    assert portable("caf\u00e9") == "caf\u00e9"
    assert portable("\udce9t") == "\udce9t"
    monkeypatch.setattr("os.fsencode", lambda name: name.encode("ascii", "surrogateescape"))
    assert portable("caf\udcc3\udca9") == "caf\u00e9"  # as Python reads it where all is ASCII


def test_numbers_have_their_nouns() -> None:
    assert [count(number, "file") for number in (0, 1, 2000)] == [
        "0 files",
        "1 file",
        "2,000 files",
    ]
    assert [count(number, "class") for number in (1, 2)] == ["1 class", "2 classes"]


def test_many_classes_are_cut_with_their_number() -> None:
    classes = {3: "cat", 5: "dog", 7: "horse"}
    assert numbered(classes) == numbered(classes, 3) == "3 cat, 5 dog, 7 horse"
    assert numbered(classes, 2) == "3 cat, 5 dog and 1 more"
