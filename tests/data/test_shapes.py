import numpy as np
import pytest

from cifar_tl.data.shapes import CLASS_NAMES, draw_shapes


def test_shapes_are_the_same_at_every_call_and_all_different() -> None:
    x_train, y_train, x_test, y_test = draw_shapes(300, 50)
    again = draw_shapes(300, 50)
    assert np.array_equal(x_train, again[0])
    assert np.array_equal(y_train, again[1])
    assert np.array_equal(x_test, again[2])
    assert np.array_equal(y_test, again[3])
    images = np.concatenate([x_train, x_test])
    assert len(np.unique(images.reshape(350, -1), axis=0)) == 350


def test_shapes_have_the_promised_form() -> None:
    x_train, y_train, x_test, y_test = draw_shapes(1000, 200)
    assert (x_train.shape, x_test.shape) == ((1000, 3, 32, 32), (200, 3, 32, 32))
    assert x_train.dtype == x_test.dtype == np.uint8
    assert y_train.dtype == y_test.dtype == np.int64
    assert np.bincount(y_train).tolist() == [100] * len(CLASS_NAMES) == [100] * 10
    assert np.bincount(y_test).tolist() == [20] * 10
    assert len(set(y_train[:20].tolist())) > 5  # not sorted


@pytest.mark.parametrize("label", range(10))
def test_images_of_a_class_vary_in_every_pixel_and_show_something(label: int) -> None:
    images, labels, _, _ = draw_shapes(1000, 0)
    members = images[labels == label].astype(float)
    assert members.std(axis=0).min() > 30  # across images: no pixel gives the class away
    assert members.std(axis=(2, 3)).mean() > 10  # within images
