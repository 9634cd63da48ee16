"""What is settled before a net is built: rules, missing labels, warnings; each text as a user reads it."""

import logging

import numpy as np
import pytest
import torch

import caffeport
from caffeport.description import describe
from caffeport.errors import InputError, ShapeError
from tests.conftest import DIGITS
from tests.formats.wire_writer import message, number, packed, shape, text

DATA = 'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 4 dim: 4 } } RULE }\n'
FC = (
    'layer { name: "fc" type: "InnerProduct" bottom: "data" top: "fc" '
    'inner_product_param { num_output: 5 weight_filler { type: "xavier" } } }\n'
)
PROB = 'layer { name: "prob" type: "Softmax" bottom: "fc" top: "prob" }\n'


def layer(name: str, type_: str, *bottoms: str, tops: tuple[str, ...] | None = None, extra: str = "") -> str:
    tops = (name,) if tops is None else tops
    ends = " ".join([f'bottom: "{b}"' for b in bottoms] + [f'top: "{t}"' for t in tops])
    return f'layer {{ name: "{name}" type: "{type_}" {ends} {extra} }}\n'


# Stages, phases and levels

STAGED = (
    DATA.replace("RULE", 'include { stage: "deploy" }')
    + layer("train-data", "Data", tops=("data", "label"), extra='include { stage: "train" }')
    + FC
    + PROB
)


def test_stages_choose_the_net() -> None:
    network = caffeport.load(STAGED.encode(), stages=["deploy"])
    assert list(network.inputs) == ["data"] and network.outputs == ["prob"]


def test_without_a_stage_the_error_lists_those_that_the_file_knows() -> None:
    words = r"leave out the layers that write 'data' \(written by 'data', 'train-data', read by 'fc'\)"
    with pytest.raises(InputError, match=words) as error:
        caffeport.load(STAGED.encode())
    assert "stages: deploy, train" in str(error.value) and "--stage" in str(error.value)


def test_a_blob_that_the_rules_took_away_may_be_fed() -> None:
    network = caffeport.load(STAGED.encode(), inputs={"data": (2, 3, 4, 4)})
    assert list(network.inputs) == ["data"]


def test_rules_that_leave_nothing() -> None:
    net = (DATA.replace("RULE", "") + FC.replace("}\n", ' include { stage: "a" stage: "b" } }\n', 1)).encode()
    with pytest.raises(InputError, match=r"leave no layer that computes anything; .*stages: a, b"):
        caffeport.load(net, stages=["a"])


def test_levels() -> None:
    net = DATA.replace("RULE", "") + FC + PROB.replace("}\n", "include { min_level: 2 } }\n")
    assert caffeport.load(net.encode()).outputs == ["fc"]
    assert caffeport.load(net.encode(), level=2).outputs == ["prob"]


# Labels that nothing makes

PLAIN = DATA.replace("RULE", "") + FC + PROB
LEFTOVERS = [
    pytest.param(layer("acc", "Accuracy", "prob", "label"), ["acc"], id="accuracy"),
    pytest.param(layer("loss", "SoftmaxWithLoss", "fc", "label"), ["loss"], id="loss"),
    pytest.param(layer("eval", "DetectionEvaluate", "prob", "label"), ["eval"], id="a type that nobody describes"),
    pytest.param(layer("quiet", "Silence", "label", tops=()), ["quiet"], id="silence"),
    pytest.param(
        layer("cut", "Slice", "label", tops=("one", "two"))
        + layer("l1", "EuclideanLoss", "fc", "one")
        + layer("l2", "EuclideanLoss", "fc", "two"),
        ["cut", "l1", "l2"],
        id="a label that is sliced first",
    ),
    pytest.param(
        layer("loss", "SoftmaxWithLoss", "fc", "label") + layer("sum", "Power", "loss"), ["loss", "sum"], id="and after"
    ),
]


@pytest.mark.parametrize(("left", "cut"), LEFTOVERS)
def test_the_branch_of_a_label_without_a_producer_is_cut(left: str, cut: list[str], caplog) -> None:
    with caplog.at_level(logging.WARNING, "caffeport"):
        network = caffeport.load((PLAIN + left).encode())
    assert network.outputs == ["prob"] and list(network.inputs) == ["data"]
    *messages, fillers = [record.getMessage() for record in caplog.records]
    assert "no weights were given: 1 layer(s) keep their fillers" in fillers
    assert len(messages) == len(cut)
    assert all(f"layer '{name}'" in text and " cut: " in text for name, text in zip(cut, messages, strict=True))
    assert any("'label', which no layer makes" in text and "--input" in text for text in messages)


def test_a_label_that_the_caller_feeds_keeps_its_branch() -> None:
    network = caffeport.load((PLAIN + layer("acc", "Accuracy", "prob", "label")).encode(), inputs={"label": (2,)})
    assert set(network.inputs) == {"data", "label"} and network.outputs == ["acc"]


def test_a_label_that_is_there_keeps_its_branch() -> None:
    net = DATA.replace('top: "data"', 'top: "data" top: "label"').replace("RULE", "") + FC
    assert describe((net + layer("l", "EuclideanLoss", "fc", "fc")).encode()).warnings == []


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(layer("relu", "ReLU", "fcc"), id="a layer that computes"),
        pytest.param(layer("sum", "Eltwise", "fc", "fcc"), id="beside a right bottom"),
        pytest.param(
            layer("gain", "Scale", "fcc") + layer("l", "EuclideanLoss", "fc", "gain"), id="weights and a loss"
        ),
    ],
)
def test_a_misspelt_blob_of_a_real_layer_is_an_error(wrong: str) -> None:
    with pytest.raises(ShapeError, match=r"'fcc', which no layer writes"):
        caffeport.load((PLAIN + wrong).encode())


# Sources without bottoms


def test_a_python_data_layer_is_an_input_and_nothing_is_imported() -> None:
    source = layer(
        *("data", "Python"),
        tops=("data", "label"),
        extra='python_param { module: "gone.layers" layer: "Data" param_str: "{}" }',
    )
    network = caffeport.load((source + FC).encode(), inputs={"data": (2, 3, 4, 4)})
    assert list(network.inputs) == ["data", "label"]
    assert network(torch.zeros(2, 3, 4, 4)).shape == (2, 5)


# Weights files with more in them than the net uses


def test_what_the_net_does_not_use_in_a_weights_file_never_blocks() -> None:
    weight = np.ones((5, 48), np.float32)
    blobs = [message(7, packed(5, array.ravel()), shape(*array.shape)) for array in (weight, np.zeros(5))]
    stored = b"".join(
        [
            message(100, text(1, "fc"), text(2, "InnerProduct"), *blobs),
            message(100, text(1, "odd"), text(2, "NobodysLayer"), text(3, "fc"), text(4, "odd")),
            message(100, text(1, "torn"), text(2, "Convolution"), message(106, b"\x22\xff\xff\xff\x7f")),
            message(100, text(1, "more"), text(2, "Data"), number(10, 1), message(107, b"\x0a\x7f")),
        ]
    )
    network = caffeport.load(PLAIN.encode(), stored)
    assert torch.equal(network.get_parameter("fc.weight"), torch.ones(5, 48))


# Warnings that save a week

NORM = layer("bn1", "BatchNorm", "data") + layer("bn2", "BatchNorm", "bn1")


def statistics(mean: float, variance: float, factor: float) -> bytes:
    blobs = [message(7, packed(5, [v] * n), shape(n)) for v, n in ((mean, 3), (variance, 3), (factor, 1))]
    return b"".join(message(100, text(1, name), text(2, "BatchNorm"), *blobs) for name in ("bn1", "bn2"))


@pytest.mark.parametrize(
    ("stored", "words"),
    [
        pytest.param(statistics(0, 0, 0), "factor is 0, so that the layer multiplies by 316", id="all"),
        pytest.param(statistics(1, 2, 0), "factor is 0", id="the factor only"),
        pytest.param(statistics(0, 0, 1), "statistics are all zero", id="a factor, but nothing to divide"),
        pytest.param(statistics(2, 0, 1), "variance is all zero", id="the variance only"),
    ],
)
def test_batch_norm_without_statistics(stored: bytes, words: str) -> None:
    (warning,) = describe((DATA.replace("RULE", "") + NORM).encode(), stored).warnings
    assert warning.startswith("layers 'bn1', 'bn2' (BatchNorm): ")
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(warning)


def test_batch_norm_with_statistics_is_silent() -> None:
    assert describe((DATA.replace("RULE", "") + NORM).encode(), statistics(0, 3, 1)).warnings == []
    assert describe((DATA.replace("RULE", "") + NORM).encode()).warnings == []  # no file, no reproach


def test_batch_statistics_in_a_deploy_net() -> None:
    net = DATA.replace("RULE", "") + layer(
        "bn", "BatchNorm", "data", extra="batch_norm_param { use_global_stats: false }"
    )
    (warning,) = describe(net.encode()).warnings
    assert "'bn' (BatchNorm): use_global_stats: false" in warning and "batch" in warning
    assert describe(net.replace("false", "true").encode()).warnings == []
    assert describe(net.encode(), phase="TRAIN").warnings == []  # there it is right


def test_fillers_for_what_code_sets_later(caplog) -> None:
    net = DATA.replace("RULE", "") + (
        'layer { name: "up" type: "Deconvolution" bottom: "data" top: "up" convolution_param { num_output: 3 group: 3 '
        'kernel_size: 4 stride: 2 pad: 1 bias_term: false weight_filler { type: "bilinear" } } }\n'
        'layer { name: "temperature" type: "Scale" bottom: "up" top: "hot" '
        'scale_param { axis: 0 num_axes: 0 filler { type: "constant" value: 2.606 } } }\n'
    )
    other = message(100, text(1, "x"), text(2, "InnerProduct"), message(7, packed(5, [1.0]), shape(1)))
    with caplog.at_level(logging.WARNING, "caffeport"):
        network = caffeport.load(net.encode(), other, strict=False)
    assert "'up' (Deconvolution), 'temperature' (Scale); they keep their fillers" in caplog.text
    ramp = torch.tensor([0.25, 0.75, 0.75, 0.25])
    assert torch.equal(network.get_parameter("up.weight")[0, 0], ramp[:, None] * ramp)
    assert network.get_parameter("temperature.weight").item() == pytest.approx(2.606)
    with torch.no_grad():
        network.get_parameter("temperature.weight").fill_(1.0)
    assert network(torch.ones(2, 3, 4, 4))[0, 0, 3, 3] == 1.0


def test_an_error_carries_the_line_of_a_misspelt_field():
    text = (DIGITS / "deploy.prototxt").read_text(encoding="utf-8").replace("kernel_size", "kernel_sise", 1)
    line = next(i for i, words in enumerate(text.splitlines(), 1) if "kernel_sise" in words)
    with pytest.raises(ShapeError, match=rf"(?s)kernel_size is missing.*:{line}:\d+: .*kernel_sise.*kernel_size"):
        describe(text.encode())


# Shapes that are given


def test_a_shape_for_what_a_layer_computes_is_warned_of() -> None:
    inplace = layer("relu", "ReLU", "fc", tops=("fc",))
    (warning,) = describe(
        (DATA.replace("RULE", "") + FC + inplace).encode(), inputs={"fc": (2, 7), "data": (1, 3, 4, 4)}
    ).warnings
    assert "input 'fc': a shape is given for it, and layer 'fc' (InnerProduct) computes that blob" in warning


@pytest.mark.parametrize(
    "inputs", [[1], "data", 5, {"data": 5}, {"data": "1,3,4,4"}, {"data": (1, 3, 4, 4.5)}, {"data": None}], ids=repr
)
def test_shapes_of_other_types(inputs: object) -> None:
    with pytest.raises(InputError, match=r"inputs(: 'data' has the shape .* whole numbers| is .* shapes by blob name)"):
        describe(PLAIN.encode(), inputs=inputs)  # type: ignore[arg-type]


def test_shapes_of_numpys_numbers() -> None:
    graph = describe(PLAIN.encode(), inputs={"data": np.array([5, 3, 4, 4])}).graph  # type: ignore[dict-item]
    assert graph.inputs[0].shape == (5, 3, 4, 4)
