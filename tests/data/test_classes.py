import re
from pathlib import Path

import pytest

from cifar_tl.data.classes import (
    CIFAR10_CLASS_NAMES,
    SHAPES_CLASS_NAMES,
    Chosen,
    choose_classes,
    listed,
    split_suffix,
)
from cifar_tl.data.shapes import CLASS_NAMES
from cifar_tl.data.source import load_data
from cifar_tl.errors import DataError


@pytest.mark.parametrize(
    ("base", "new", "expected", "suffix"),
    [
        (None, None, ((0, 1, 2, 3, 4), (5, 6, 7, 8, 9)), ""),
        ("4,3,2,1,0", None, ((0, 1, 2, 3, 4), (5, 6, 7, 8, 9)), ""),
        ("dog, cat,4", "ship,truck", ((3, 4, 5), (8, 9)), "-345-89"),
        (None, ["ship", 9], ((0, 1, 2, 3, 4, 5, 6, 7), (8, 9)), "-01234567-89"),
        ((0, "frog"), None, ((0, 6), (1, 2, 3, 4, 5, 7, 8, 9)), "-06-12345789"),
        ("all", None, ((0, 1, 2, 3, 4, 5, 6, 7, 8, 9), ()), "-all"),
        (range(10), None, ((0, 1, 2, 3, 4, 5, 6, 7, 8, 9), ()), "-all"),
        (None, "all", ((0, 1, 2, 3, 4, 5, 6, 7, 8, 9),) * 2, "-own"),
    ],
)
def test_classes_are_chosen_by_name_or_number(
    base: Chosen, new: Chosen, expected: object, suffix: str
) -> None:
    chosen = choose_classes(CIFAR10_CLASS_NAMES, base, new)
    assert chosen == expected
    assert split_suffix(*chosen, len(CIFAR10_CLASS_NAMES)) == suffix


@pytest.mark.parametrize(
    ("num_classes", "base", "new", "suffix"),
    [
        (100, None, None, ""),
        (7, None, None, ""),  # 0-2 and 3-6
        (100, "all", None, "-all"),
        (100, "1,23", "4,5", "-1_23-4_5"),
        (100, "1,2,3", "4,5", "-1to3-4_5"),
        (100, "1,2", "3,45", "-1_2-3_45"),
        (100, None, range(20, 100), "-0to19-20to99"),
        (12, "0,1,2,5,7,8,9,11", None, "-0to2_5_7to9_11-3_4_6_10"),
    ],
)
def test_any_number_of_classes_has_a_clear_name(
    num_classes: int, base: Chosen, new: Chosen, suffix: str
) -> None:
    names = [f"class {number}" for number in range(num_classes)]
    chosen = choose_classes(names, base, new)
    assert split_suffix(*chosen, num_classes) == suffix


def test_many_scattered_classes_have_a_short_name_of_their_own() -> None:
    names = [f"class {number}" for number in range(100)]
    suffixes = set()
    for left_out in range(100):
        base = [number for number in range(0, 100, 2) if number != left_out]
        suffixes.add(split_suffix(*choose_classes(names, base), 100))
        suffixes.add(split_suffix(*choose_classes(names, base, "1,3"), 100))
    assert len(suffixes) == 2 * 51  # fifty without one of them, and one with all
    assert all(re.fullmatch(r"-\d\d-\d+-[0-9a-f]{8}", suffix) for suffix in suffixes)
    assert split_suffix(*choose_classes(names, range(0, 100, 2)), 100) == "-50-50-b4bf6948"


@pytest.mark.parametrize(("number", "found"), [(0, "0 classes"), (1, "1 class")])
def test_fewer_than_two_classes_are_refused(number: int, found: str) -> None:
    for chosen in ((None, None), ("all", None), (None, "all")):
        with pytest.raises(DataError, match=f"only {found}: there must be two or more"):
            choose_classes(tuple("a"[:number]), *chosen)


@pytest.mark.parametrize("number", [2, 3])
def test_too_few_classes_to_divide_are_all_new(number: int) -> None:
    everything = tuple(range(number))
    assert choose_classes(tuple("abc"[:number])) == (everything, everything)
    assert choose_classes(tuple("abc"[:number]), "all") == (everything, ())
    assert split_suffix(everything, everything, number) == ""


@pytest.mark.parametrize(
    ("base", "new", "message"),
    [
        ("cow,cat", None, r"base classes: there is no class 'cow': choose among 0 airplane, 1 aut"),
        ("", None, r"base classes: there is no class ''"),
        (["cat", -1], None, r"there is no class -1"),
        ("10,1", None, r"there is no class '10'"),
        ("cat,3", None, r"base classes: 3 cat is there twice"),
        ("cat", None, r"base classes: there must be at least two, not 3 cat"),
        ("0,1", "2", r"new classes: there must be at least two, not 2 bird"),
        (range(9), None, r"new classes: there must be at least two, not 9 truck"),
        (None, range(10), r"base classes: there must be at least two, not none"),
        ("0,1", "1,2", r"base classes and new classes both have 1 automobile"),
        ("all", "all", r"cannot both be all: leave the base classes out to learn all classes from"),
        ("all", "0,1", r"both have 0 airplane, 1 automobile"),
    ],
)
def test_what_cannot_be_is_said(base: Chosen, new: Chosen, message: str) -> None:
    with pytest.raises(DataError, match=message):
        choose_classes(CIFAR10_CLASS_NAMES, base, new)


def test_names_win_over_numbers() -> None:
    names = ("9", "1", *"abcdefg", "all")
    assert choose_classes(names, "9,1", "a,b") == ((0, 1), (2, 3))
    assert choose_classes(names, "all,a", "b,c") == ((2, 9), (3, 4))


def test_the_names_are_those_of_what_is_drawn() -> None:
    assert CLASS_NAMES == SHAPES_CLASS_NAMES


def test_numbers_in_short() -> None:
    assert [listed(c) for c in ((5, 6, 7, 8, 9), (3,), (0, 1), (0, 2, 3), ())] == (
        ["5-9", "3", "0, 1", "0, 2, 3", ""]
    )
    assert listed((0, 1, 2, 4, 6, 7, 8, 9, 98, 99)) == "0-2, 4, 6-9, 98, 99"


def test_a_file_must_have_the_chosen_classes_and_no_others(small_npz: Path) -> None:
    data = load_data(small_npz, base_classes="cat,deer", new_classes=[8, 9])
    assert (data.name, data.base_classes, data.new_classes) == ("small.npz-34-89", (3, 4), (8, 9))
    train, validation = data.train_and_validation(data.new_classes)
    assert {*train.labels.tolist()} == {*validation.labels.tolist()} == {8, 9}
    assert len(train.labels) == 4 * len(validation.labels) == 32
    with pytest.raises(DataError, match="there is no class 'cow'"):
        load_data(small_npz, base_classes="cow,deer")


def test_classes_of_folders_are_not_divided(own_classes: Path) -> None:
    with pytest.raises(DataError, match="are not divided into base and new ones"):
        load_data(own_classes, new_classes="ash,Birch")
