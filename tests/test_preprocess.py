"""From pictures to inputs, as Caffe's data transformer does it."""

import json
from pathlib import Path

import numpy as np
import pytest

import caffeport
from caffeport.errors import FormatError, InputError
from caffeport.formats.schema import Message, message_class
from caffeport.formats.text import parse_text
from caffeport.preprocess import Preprocessing
from caffeport.store import convert

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


def param(**fields: object) -> Message:
    return message_class("TransformationParameter")(**fields)


def test_as_a_data_layer_says() -> None:
    values = param(scale=0.25, crop_size=4, mean_value=[10, 20, 30])
    assert Preprocessing.of(values) == Preprocessing(mean=(10, 20, 30), scale=0.25, crop=(4, 4))
    assert Preprocessing.of(values, mean=3.0, crop=None) == Preprocessing(mean=3.0, scale=0.25)
    assert Preprocessing.of(param(mean_file="m"), mean=MEAN, bgr=False).mean is MEAN
    assert Preprocessing.of(param(mirror=True)) == Preprocessing()


@pytest.mark.parametrize("sizes", [{"crop_h": 4, "crop_w": 5}, {"crop_height": 4, "crop_width": 5}])
def test_crops_of_forks(sizes: dict[str, int]) -> None:
    assert Preprocessing.of(param(**sizes)).crop == (4, 5)


def test_a_mean_file_has_to_be_given() -> None:
    with pytest.raises(InputError, match="mean_file is 'm': give that file"):
        Preprocessing.of(param(mean_file="m"))
    with pytest.raises(InputError, match="mean_value and mean_file"):
        Preprocessing.of(param(mean_file="m", mean_value=[1]))


@pytest.mark.parametrize(
    "how", [{"mean": float("nan")}, {"mean": (1.0, 1e39)}, {"scale": float("inf")}, {"scale": 1e39}]
)
def test_numbers_that_float32_lacks(how: dict[str, object]) -> None:
    with pytest.raises(InputError, match="NaN, Inf"):
        Preprocessing(**how)  # type: ignore[arg-type]


# ---- what a net's own files say


def net(transform: str = "", source: str = "Data") -> bytes:
    """A training net for pictures of 4 x 5, as text."""
    return f"""
    layer {{ name: "d" type: "{source}" top: "data" top: "label" {transform} }}
    layer {{ name: "fc" type: "InnerProduct" bottom: "data" top: "fc"
             inner_product_param {{ num_output: 2 weight_filler {{ type: "xavier" }} }} }}
    layer {{ name: "loss" type: "SoftmaxWithLoss" bottom: "fc" bottom: "label" top: "loss" }}
    """.encode()


def loaded(transform: str = "", source: str = "Data") -> caffeport.Network:
    return caffeport.load(net(transform, source), inputs={"data": (None, 3, 4, 5)}, deploy=True)


VALUES = "transform_param { mean_value: 10 mean_value: 20 mean_value: 30 scale: 0.25 mirror: true }"


def test_the_nets_transform_param_is_what_nobody_says_otherwise() -> None:
    network = loaded(VALUES)
    assert Preprocessing.of_net(network) == Preprocessing(mean=(10, 20, 30), scale=0.25)
    assert Preprocessing.of_net(network, scale=1.0, bgr=False) == Preprocessing(mean=(10, 20, 30), bgr=False)
    assert Preprocessing.of_net(network.truncate("fc")) == Preprocessing.of_net(network.folded())


def test_a_mean_picture_larger_than_the_input_is_cropped_to_it() -> None:
    assert Preprocessing.of_net(loaded(), mean=MEAN).crop == (4, 5)
    assert Preprocessing.of_net(loaded(), mean=MEAN[:, :4, :5]).crop is None


def test_a_converted_folder_keeps_it(tmp_path: Path) -> None:
    np.save(tmp_path / "mean.npy", MEAN)
    given = {"inputs": {"data": (None, 3, 4, 4)}}
    convert(net("transform_param { mean_file: 'm' crop_size: 4 scale: 0.017 }"), None, tmp_path / "a", **given)
    with pytest.raises(InputError, match="mean_file is 'm'"):
        Preprocessing.of_net(caffeport.load(tmp_path / "a"))
    convert(
        net("transform_param { mean_file: 'm' crop_size: 4 scale: 0.017 }"),
        None,
        tmp_path / "b",
        mean=tmp_path / "mean.npy",
        **given,
    )
    network = caffeport.load(tmp_path / "b")
    for part in (network, network.truncate("fc"), network.folded()):
        prepare = Preprocessing.of_net(part)
        np.testing.assert_array_equal(prepare(PICTURE), Preprocessing(MEAN, 0.017, (4, 4))(PICTURE))
    assert Preprocessing.of_net(network, mean=0.0) == Preprocessing(scale=float(np.float32(0.017)), crop=(4, 4))
    facts = json.loads((tmp_path / "b" / "caffeport.json").read_text())["preprocessing"]
    assert facts["transform_param"] == {"d": {"mean_file": "m", "crop_size": 4, "scale": 0.017}}


def test_pictures_as_they_are_is_known_too(tmp_path: Path) -> None:
    assert Preprocessing.of_net(loaded("transform_param { }")) == Preprocessing()
    convert(net("transform_param { }"), None, tmp_path / "net", inputs={"data": (None, 3, 4, 5)})
    assert Preprocessing.of_net(caffeport.load(tmp_path / "net")) == Preprocessing()


def test_where_nothing_is_known() -> None:
    with pytest.raises(InputError, match=r"nothing says how.*give the mean \(--mean FILE or B,G,R; 0 for none\)"):
        Preprocessing.of_net(loaded())
    with pytest.raises(InputError, match="nothing says how"):
        Preprocessing.of_net(loaded(), bgr=False)
    assert Preprocessing.of_net(loaded(), scale=0.5) == Preprocessing(scale=0.5)


def test_the_error_shows_what_the_weights_files_own_net_was_trained_with() -> None:
    weights = message_class("NetParameter")()
    parse_text(net(VALUES), weights, "train.prototxt")
    weights.layer[1].blobs.add(data=[0.0] * 120).shape.dim[:] = [2, 60]
    weights.layer[1].blobs.add(data=[0.0] * 2).shape.dim[:] = [2]
    file = weights.SerializeToString()
    network = caffeport.load(net(), file, inputs={"data": (None, 3, 4, 5)}, deploy=True)
    with pytest.raises(
        InputError, match=r"was trained with transform_param \{ scale: 0.25 mirror: true mean_value: 10"
    ):
        Preprocessing.of_net(network)
    alone = caffeport.load(file, inputs={"data": (None, 3, 4, 5)})
    assert Preprocessing.of_net(alone) == Preprocessing(mean=(10, 20, 30), scale=0.25)


def test_two_data_layers_that_differ() -> None:
    text = b"""
    layer { name: "a" type: "Data" top: "x" transform_param { scale: 2 } }
    layer { name: "b" type: "Data" top: "y" transform_param { scale: 3 } }
    layer { name: "sum" type: "Eltwise" bottom: "x" bottom: "y" top: "sum" }
    """
    network = caffeport.load(text, inputs={"x": (1, 3, 4, 5), "y": (1, 3, 4, 5)})
    with pytest.raises(InputError, match="2 data layers have different transform_param: 'a', 'b'"):
        Preprocessing.of_net(network)


@pytest.mark.parametrize("damage", [[], {"transform_param": {"d": {"scale": "wide"}}}, {"transform_param": 3}])
def test_a_damaged_record(damage: object, tmp_path: Path) -> None:
    convert(net(VALUES), None, tmp_path / "net", inputs={"data": (None, 3, 4, 5)})
    path = tmp_path / "net" / "caffeport.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"preprocessing": damage}))
    with pytest.raises(FormatError, match="'preprocessing' is not as caffeport writes it"):
        caffeport.load(tmp_path / "net")
