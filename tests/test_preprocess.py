"""From pictures to inputs, as Caffe's data transformer does it."""

import numpy as np
import pytest

from caffeport.errors import InputError
from caffeport.formats import MeanImage
from caffeport.formats.schema import message_class
from caffeport.preprocess import Preprocessing

PICTURE = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
RGB = PICTURE.astype(np.float32)
MEAN = np.random.default_rng(1).uniform(0, 255, (3, 6, 9)).astype(np.float32)


def test_channels_are_swapped_then_the_mean_goes_and_the_scale_comes() -> None:
    x = Preprocessing(mean=(104, 117, 123), scale=0.5)(PICTURE)
    assert x.shape == (1, 3, 6, 9) and x.dtype == np.float32 and x.flags.c_contiguous
    np.testing.assert_array_equal(x[0, 0], (RGB[..., 2] - 104) * 0.5)
    np.testing.assert_array_equal(x[0, 2], (RGB[..., 0] - 123) * 0.5)


def test_a_mean_image_has_the_size_of_the_uncropped_picture() -> None:
    x = Preprocessing(mean=MEAN, crop=(4, 4), bgr=False)(PICTURE)
    np.testing.assert_array_equal(x[0], (RGB.transpose(2, 0, 1) - MEAN)[:, 1:5, 2:6])


def test_an_odd_rest_is_cut_more_at_the_end() -> None:
    x = Preprocessing(crop=(3, 4), bgr=False)(PICTURE)
    np.testing.assert_array_equal(x[0], RGB.transpose(2, 0, 1)[:, 1:4, 2:6])


def test_nets_trained_on_transposed_pictures_get_columns_first() -> None:
    """The same numbers with the axes of the plane swapped: picture, mean and crop."""
    plain = Preprocessing(mean=MEAN, crop=(4, 5))(PICTURE)
    transposed = Preprocessing(mean=MEAN.transpose(0, 2, 1), crop=(5, 4), transposed=True)(PICTURE)
    np.testing.assert_array_equal(transposed, plain.transpose(0, 1, 3, 2))
    assert Preprocessing(transposed=True)(PICTURE).shape == (1, 3, 9, 6)


@pytest.mark.parametrize(
    ("pictures", "shape"),
    [
        (np.stack([PICTURE, PICTURE]), (2, 3, 6, 9)),
        (PICTURE[..., 0], (1, 1, 6, 9)),
        (PICTURE[None, ..., :1], (1, 1, 6, 9)),
    ],
    ids=["a batch", "grey", "a batch of grey ones"],
)
def test_forms_of_pictures(pictures: np.ndarray, shape: tuple[int, ...]) -> None:
    assert Preprocessing(mean=3.0)(pictures).shape == shape


@pytest.mark.parametrize(
    ("how", "pictures", "words"),
    [
        pytest.param({}, RGB, "type float32: expected uint8", id="floats"),
        pytest.param({}, PICTURE.transpose(2, 0, 1), r"shape \(3, 6, 9\)", id="channels first"),
        pytest.param({"mean": MEAN}, PICTURE[:4], r"mean of shape \(3, 6, 9\) for .* \(3, 4, 9\)", id="mean's size"),
        pytest.param({"mean": (1.0, 2.0)}, PICTURE, "2 values for 3 channels", id="mean's channels"),
        pytest.param({"crop": (7, 7)}, PICTURE, "crop of 7 x 7 from pictures of 6 x 9", id="crop"),
    ],
)
def test_what_does_not_fit(how: dict[str, object], pictures: np.ndarray, words: str) -> None:
    with pytest.raises(InputError, match=words):
        Preprocessing(**how)(pictures)  # type: ignore[arg-type]


def test_as_a_data_layer_says() -> None:
    param = message_class("TransformationParameter")(scale=0.25, crop_size=4, mean_value=[10, 20, 30])
    assert Preprocessing.of(param) == Preprocessing(mean=(10, 20, 30), scale=0.25, crop=(4, 4))
    picture = MeanImage(MEAN, "a mean")
    assert Preprocessing.of(message_class("TransformationParameter")(mean_file="m"), picture, bgr=False).mean is MEAN
    with pytest.raises(InputError, match="mean_value and a mean image"):
        Preprocessing.of(param, picture)
    with pytest.raises(InputError, match="mean_file is 'm': give that file"):
        Preprocessing.of(message_class("TransformationParameter")(mean_file="m"))
