"""Losses and accuracy against plain loops over NumPy numbers."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import caffeport
from caffeport import ShapeError, UnsupportedLayer
from caffeport.export.proof import run as run_onnx
from tests.agreement import disagreement

REL = 1e-6  # float64 against float64; the floors are float32 constants
Array = np.ndarray[Any, Any]


def net_of(layer: str, shapes: dict[str, tuple[int, ...]]) -> caffeport.Network:
    """A net of inputs and one layer, whose bottoms they are."""
    inputs = "".join(
        f'layer {{ name: "{name}" type: "Input" top: "{name}" '
        f"input_param {{ shape {{ {' '.join(f'dim: {size}' for size in shape)} }} }} }}\n"
        for name, shape in shapes.items()
    )
    bottoms = " ".join(f'bottom: "{name}"' for name in shapes)
    return caffeport.load(f'{inputs}layer {{ name: "l" {bottoms} {layer} }}'.encode())


def run(layer: str, **arrays: Any) -> dict[str, Array]:
    """Tops of one layer in float64."""
    tensors = {name: torch.tensor(array, dtype=torch.float64) for name, array in arrays.items()}
    net = net_of(layer, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    return {key.removeprefix("l::"): v.numpy() for key, v in net.blobs(tensors).items() if key.startswith("l::")}


def places(shape: tuple[int, ...], axis: int) -> list[tuple[int, ...]]:
    """Indices of everything but the class axis, in order."""
    return list(np.ndindex(*shape[:axis], *shape[axis + 1 :]))


def softmax(x: Array, axis: int) -> Array:
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def looped(
    x: Array, labels: Array, axis: int, term: Callable[[Array, int], float], mode: str, ignore: int | None
) -> float:
    """Sum of term(values of all classes at a place, its label) over places that count, normalised as Caffe says."""
    total, valid = 0.0, 0
    where = places(x.shape, axis)
    for place, label in zip(where, labels.ravel().astype(int), strict=True):
        if label == ignore:
            continue
        valid += 1
        total += term(x[(*place[:axis], slice(None), *place[axis:])], label)
    z = {"FULL": len(where), "VALID": valid, "BATCH_SIZE": math.prod(x.shape[:axis]), "NONE": 1}[mode]
    return total / max(z, 1)


MODES = st.sampled_from(["FULL", "VALID", "BATCH_SIZE", "NONE"])


@st.composite
def scored(draw: st.DrawFn) -> tuple[Array, Array, int, int | None]:
    """Scores, labels, the class axis, and perhaps a label to ignore."""
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=2, max_size=4)))
    axis = draw(st.integers(0, len(shape) - 1))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    if axis == 0:
        shape = (shape[1], *shape[1:])  # Caffe wants equal first dimensions of scores and labels
    x = rng.normal(0, 3, shape)
    labels = rng.integers(0, shape[axis], (*shape[:axis], *shape[axis + 1 :])).astype(float)
    return x, labels, axis, draw(st.none() | st.just(0))


@settings(max_examples=40)
@given(scored(), MODES)
def test_softmax_loss(data: tuple[Array, Array, int, int | None], mode: str) -> None:
    x, labels, axis, ignore = data
    ignored = "" if ignore is None else f"ignore_label: {ignore}"
    spec = f"softmax_param {{ axis: {axis} }} loss_param {{ normalization: {mode} {ignored} }}"
    tops = run(f'type: "SoftmaxWithLoss" top: "loss" top: "p" {spec}', x=x, y=labels)
    p = softmax(x, axis)
    wanted = looped(p, labels, axis, lambda p, label: -math.log(p[label]), mode, ignore)
    assert tops["loss"].shape == ()
    assert tops["loss"] == pytest.approx(wanted, rel=REL, abs=1e-12)
    np.testing.assert_allclose(tops["p"], p, rtol=REL)


@settings(max_examples=40)
@given(scored(), MODES)
def test_infogain_loss(data: tuple[Array, Array, int, int | None], mode: str) -> None:
    x, labels, axis, ignore = data
    classes = x.shape[axis]
    gain = np.random.default_rng(classes).normal(size=(classes, classes))  # not symmetric
    ignored = "" if ignore is None else f"ignore_label: {ignore}"
    spec = f"infogain_loss_param {{ axis: {axis} }} loss_param {{ normalization: {mode} {ignored} }}"
    tops = run(f'type: "InfogainLoss" top: "loss" {spec}', x=x, y=labels, H=gain)
    wanted = looped(softmax(x, axis), labels, axis, lambda p, label: -gain[label] @ np.log(p), mode, ignore)
    assert tops["loss"] == pytest.approx(wanted, rel=REL, abs=1e-12)


@settings(max_examples=40)
@given(MODES, st.booleans(), st.integers(0, 1000))
def test_sigmoid_cross_entropy_loss(mode: str, ignores: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, t = rng.normal(0, 5, (3, 2, 2)), rng.choice([0, 0.25, 0.99, 1, 2], (3, 4))
    kept = [int(value) != 2 or not ignores for value in t.ravel()]  # Caffe compares the truncated target
    terms = (t.ravel() * np.log1p(np.exp(-x.ravel())) + (1 - t.ravel()) * np.log1p(np.exp(x.ravel()))).tolist()
    z = {"FULL": 12, "VALID": sum(kept), "BATCH_SIZE": 3, "NONE": 1}[mode]
    wanted = sum(term for term, keep in zip(terms, kept, strict=True) if keep) / max(z, 1)
    spec = f"loss_param {{ normalization: {mode} {'ignore_label: 2' if ignores else ''} }}"
    tops = run(f'type: "SigmoidCrossEntropyLoss" top: "loss" {spec}', x=x, t=t)
    assert tops["loss"] == pytest.approx(wanted, rel=REL, abs=1e-12)


@pytest.mark.parametrize(
    ("param", "divisor"),
    [
        pytest.param("", 6, id="default VALID"),
        pytest.param("normalize: true", 6, id="old normalize means VALID"),
        pytest.param("normalize: false", 2, id="old normalize means BATCH_SIZE"),
        pytest.param("normalize: false normalization: FULL", 6, id="normalization goes before normalize"),
    ],
)
def test_which_normalization(param: str, divisor: int) -> None:
    x, y = np.random.default_rng(0).normal(size=(2, 4, 3)), np.ones((2, 3))
    tops = run(f'type: "SoftmaxWithLoss" top: "loss" loss_param {{ {param} }}', x=x, y=y)
    assert tops["loss"] == pytest.approx(-np.log(softmax(x, 1)[:, 1]).sum() / divisor, rel=REL)


def test_sigmoid_cross_entropy_divides_by_the_batch_where_nothing_is_said() -> None:
    tops = run('type: "SigmoidCrossEntropyLoss" top: "loss"', x=np.zeros((2, 3)), t=np.zeros((2, 3)))
    assert tops["loss"] == pytest.approx(6 * math.log(2) / 2)


def test_a_loss_of_labels_that_are_all_ignored_is_0() -> None:
    spec = 'type: "SoftmaxWithLoss" top: "loss" loss_param { ignore_label: 255 }'
    assert run(spec, x=np.ones((2, 3)), y=np.full(2, 255))["loss"] == 0


def test_no_term_of_a_softmax_loss_is_above_the_floor_but_the_gradient_is_whole() -> None:
    x = torch.tensor([[0.0, 1e6], [0.0, float("-inf")]], dtype=torch.float64, requires_grad=True)
    net = net_of('type: "SoftmaxWithLoss" top: "loss" loss_param { normalization: NONE }', {"x": (2, 2), "y": (2,)})
    loss = net(x, torch.tensor([0.0, 1.0]))
    assert loss.item() == pytest.approx(2 * 87.3365447, rel=1e-8)
    loss.backward()
    assert x.grad is not None
    np.testing.assert_allclose(x.grad[0], [-1, 1])  # p - (1 at the label), as Caffe's backward pass gives it


@pytest.mark.parametrize("label", [-1, 3, 1e12])
@pytest.mark.parametrize("kind", ["SoftmaxWithLoss", "MultinomialLogisticLoss"])
def test_a_label_that_is_no_class_gives_nan(kind: str, label: float) -> None:
    """Caffe reads past the end of the scores there."""
    assert np.isnan(run(f'type: "{kind}" top: "loss"', x=np.full((2, 3), 1 / 3), y=[0, label])["loss"])


def test_labels_are_truncated_toward_zero() -> None:
    x = np.random.default_rng(0).normal(size=(2, 3))
    spec = 'type: "SoftmaxWithLoss" top: "loss"'
    assert run(spec, x=x, y=[1.9, -0.9])["loss"] == run(spec, x=x, y=[1, 0])["loss"]


def test_multinomial_logistic_loss() -> None:
    p = np.array([[0.2, 0.8], [0, 1]]).reshape(2, 2, 1, 1)
    tops = run('type: "MultinomialLogisticLoss" top: "loss"', p=p, y=np.zeros((2, 1, 1, 1)))
    assert tops["loss"] == pytest.approx((-math.log(0.2) - math.log(1e-20)) / 2)


def test_euclidean_loss_of_other_shapes_with_as_many_values() -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 2, 6))
    tops = run('type: "EuclideanLoss" top: "loss"', a=a, b=b.reshape(2, 3, 2))
    assert tops["loss"] == pytest.approx(((a - b) ** 2).sum() / 4, rel=REL)


@pytest.mark.parametrize("norm", ["L1", "L2"])
def test_hinge_loss(norm: str) -> None:
    x, y = np.random.default_rng(1).normal(size=(3, 4)), [3, 0, 1]
    total = 0.0
    for scores, label in zip(x, y, strict=True):
        for k, score in enumerate(scores):
            total += max(0, 1 - score if k == label else 1 + score) ** int(norm[1])
    tops = run(f'type: "HingeLoss" top: "loss" hinge_loss_param {{ norm: {norm} }}', x=x, y=[*y])
    assert tops["loss"] == pytest.approx(total / 3, rel=REL)


@pytest.mark.parametrize("legacy", [False, True])
def test_contrastive_loss(legacy: bool) -> None:
    rng = np.random.default_rng(2)
    a, b, alike = rng.normal(size=(6, 3)), rng.normal(size=(6, 3)), [0, 1, 0, 1, 0, 0]
    b[0] = a[0]
    total = 0.0
    for p, q, same in zip(a, b, alike, strict=True):
        d = np.linalg.norm(p - q)
        total += d**2 if same else max(2.5 - d**2, 0) if legacy else max(2.5 - d, 0) ** 2
    param = f"contrastive_loss_param {{ margin: 2.5 legacy_version: {str(legacy).lower()} }}"
    tops = run(f'type: "ContrastiveLoss" top: "loss" {param}', a=a, b=b, alike=alike)
    assert tops["loss"] == pytest.approx(total / 12, rel=REL)


def test_contrastive_loss_of_equal_vectors_has_a_finite_gradient() -> None:
    net = net_of('type: "ContrastiveLoss" top: "loss"', {"a": (2, 3), "b": (2, 3), "alike": (2,)})
    a = torch.ones(2, 3, requires_grad=True)
    net(a, torch.ones(2, 3), torch.zeros(2)).backward()
    assert a.grad is not None
    assert not a.grad.any()


@settings(max_examples=60)
@given(scored(), st.integers(0, 4))
def test_accuracy(data: tuple[Array, Array, int, int | None], top_k: int) -> None:
    x, labels, axis, ignore = data
    x = np.round(x / 3)  # ties
    classes = x.shape[axis]
    top_k = min(top_k, classes)
    right, seen = np.zeros(classes), np.zeros(classes)
    for place, label in zip(places(x.shape, axis), labels.ravel().astype(int), strict=True):
        if label != ignore:
            scores = x[(*place[:axis], slice(None), *place[axis:])]
            rivals = sum(scores[k] >= scores[label] for k in range(classes) if k != label)
            seen[label] += 1
            right[label] += rivals < top_k
    ignored = "" if ignore is None else f"ignore_label: {ignore}"
    spec = f"accuracy_param {{ axis: {axis} top_k: {top_k} {ignored} }}"
    tops = run(f'type: "Accuracy" top: "all" top: "each" {spec}', x=x, y=labels)
    assert tops["all"].shape == ()
    assert tops["all"] == pytest.approx(right.sum() / max(seen.sum(), 1))
    np.testing.assert_allclose(tops["each"], right / np.maximum(seen, 1))


def test_accuracy_counts_a_nan_score_as_right_and_a_label_that_is_no_class_as_wrong() -> None:
    x = np.array([[np.nan, 1, 2], [1, 2, 3]])
    assert run('type: "Accuracy" top: "a"', x=x, y=[0, 7])["a"] == 0.5


def test_a_loss_without_a_top_is_automatic() -> None:
    net = net_of('type: "EuclideanLoss"', {"a": (2, 3), "b": (2, 3)})
    assert net.blobs(torch.ones(2, 3), torch.zeros(2, 3))["l::(automatic)"].item() == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("layer", "shapes", "message"),
    [
        pytest.param(
            "SoftmaxWithLoss", [(2, 3), (3,)], r"'l' \(SoftmaxWithLoss\).*2 x 3 and 3 must .* first dim", id="first"
        ),
        pytest.param("SoftmaxWithLoss", [(2, 3, 4), (2,)], r"bottom 'b1' is 2, 2 labels; wanted are 8", id="labels"),
        pytest.param("SoftmaxWithLoss", [(2,), (2,)], r"axis 1 is outside", id="no class axis"),
        pytest.param("SoftmaxWithLoss", [(2, 3)], r"has 1 bottoms, Caffe wants 2", id="bottoms"),
        pytest.param("InfogainLoss", [(2, 3), (2,), (4,)], r"bottom 'b2' is 4; wanted are 3 x 3 values", id="H"),
        pytest.param("SigmoidCrossEntropyLoss", [(2, 3), (2, 2)], r"4 targets; wanted are 6", id="targets"),
        pytest.param("MultinomialLogisticLoss", [(2, 3), (2, 2)], r"one label for each item.*2 x 2", id="two labels"),
        pytest.param("MultinomialLogisticLoss", [(2, 3, 1, 1, 1), (2,)], r"at most 4 axes", id="five axes"),
        pytest.param("EuclideanLoss", [(2, 3), (2, 4)], r"2 x 3 and 2 x 4 differ in values an item", id="values"),
        pytest.param("EuclideanLoss", [(), ()], r"scalar", id="scalars"),
        pytest.param("HingeLoss", [(2, 3, 1, 1, 1), (2,)], r"at most 4 axes", id="hinge axes"),
        pytest.param("ContrastiveLoss", [(2, 3), (2, 4), (2,)], r"differ in channels", id="channels"),
        pytest.param("ContrastiveLoss", [(2, 3, 2), (2, 3, 2), (2,)], r"wants vectors", id="maps"),
        pytest.param("ContrastiveLoss", [(2, 3), (2, 3), (1,)], r"1 marks, too few for 2 pairs", id="marks"),
        pytest.param("Accuracy", [(2, 3), (3,)], r"3 labels; wanted are 2", id="accuracy labels"),
    ],
)
def test_shapes_that_caffe_refuses(layer: str, shapes: list[tuple[int, ...]], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        net_of(f'type: "{layer}" top: "l"', {f"b{i}": shape for i, shape in enumerate(shapes)})


def test_top_k_above_the_number_of_classes() -> None:
    with pytest.raises(ShapeError, match="top_k is 4, but there are only 3 classes"):
        net_of('type: "Accuracy" top: "l" accuracy_param { top_k: 4 }', {"x": (2, 3), "y": (2,)})


def test_infogain_matrix_of_another_file() -> None:
    with pytest.raises(
        UnsupportedLayer, match=r"'H\.binaryproto', which is not read; give the matrix as a third bottom"
    ):
        net_of(
            'type: "InfogainLoss" top: "l" infogain_loss_param { source: "H.binaryproto" }', {"x": (2, 3), "y": (2,)}
        )


def test_infogain_refuses_the_old_normalize() -> None:
    with pytest.raises(ShapeError, match="normalize is not for this layer"):
        net_of('type: "InfogainLoss" top: "l" loss_param { normalize: true }', {"x": (2, 3), "y": (2,), "H": (3, 3)})


@pytest.mark.parametrize("field", ["label_smoothing: 0.1", "normalization: PRE_FIXED", "weight_by_label_freqs: true"])
def test_a_forks_normalization_is_refused_by_name(field: str) -> None:
    with pytest.raises(UnsupportedLayer, match=f"loss_param has {field.split(':')[0]}.*only a fork knows"):
        net_of(f'type: "SoftmaxWithLoss" top: "l" loss_param {{ {field} }}', {"x": (2, 3), "y": (2,)})


GRADIENTS = {
    "SoftmaxWithLoss": [(3, 4), (3,)],
    "InfogainLoss": [(3, 4), (3,), (4, 4)],
    "SigmoidCrossEntropyLoss": [(3, 4), (3, 4)],
    "EuclideanLoss": [(3, 4), (3, 4)],
    "HingeLoss": [(3, 4), (3,)],
    "ContrastiveLoss": [(3, 4), (3, 4), (3,)],
}


@pytest.mark.parametrize("layer", GRADIENTS)
def test_gradients(layer: str) -> None:
    shapes = {f"b{i}": shape for i, shape in enumerate(GRADIENTS[layer])}
    net = net_of(f'type: "{layer}" top: "l"', shapes)
    generator = torch.Generator().manual_seed(0)
    x, *others = (torch.rand(shape, dtype=torch.float64, generator=generator) for shape in shapes.values())
    assert torch.autograd.gradcheck(lambda x: net(x, *others), x.requires_grad_())


def test_sigmoid_cross_entropy_has_caffes_gradient_at_0() -> None:
    net = net_of('type: "SigmoidCrossEntropyLoss" top: "l"', {"x": (1, 2), "t": (1, 2)})
    x = torch.zeros(1, 2, requires_grad=True)
    net(x, torch.tensor([[0.0, 1.0]])).backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[0.5, -0.5]]


def test_the_losses_compile_to_one_graph() -> None:
    net = net_of('type: "SoftmaxWithLoss" top: "l" loss_param { ignore_label: 1 }', {"x": (2, 3), "y": (2,)})
    exported = torch.export.export(net._modules["l"], (torch.ones(2, 3), torch.tensor([0.0, 1.0])))  # type: ignore[arg-type]
    assert exported.module()(torch.ones(2, 3), torch.tensor([0.0, 1.0])).item() == pytest.approx(math.log(3))


# ---- in ONNX


def check_onnx(path: Path, network: caffeport.Network, **arrays: Any) -> None:
    """onnxruntime's tops are the network's, in float32."""
    feeds = {name: np.asarray(array, np.float32) for name, array in arrays.items()}
    with torch.no_grad():
        want = network.blobs(feeds)
    for name, got in run_onnx(path, feeds).items():
        assert disagreement(got, want[name].numpy()) is None, (name, got, want[name])


LABELLED = {
    "SoftmaxWithLoss": 'top: "loss" top: "p" softmax_param {{ axis: {0} }} loss_param {{ normalization: {1} {2} }}',
    "InfogainLoss": 'top: "loss" top: "p" infogain_loss_param {{ axis: {0} }} loss_param {{ normalization: {1} {2} }}',
    "Accuracy": 'top: "all" top: "each" accuracy_param {{ axis: {0} top_k: {3} {2} }}',
}


@pytest.mark.parametrize("kind", LABELLED)
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=scored(),
    mode=MODES,
    top_k=st.integers(0, 4),
    first_label=st.sampled_from([1, 1.9, -0.9, -1, 1e12]),
    rounded=st.booleans(),
)
def test_in_onnx_labels_at_any_axis(
    kind: str,
    data: tuple[Array, Array, int, int | None],
    mode: str,
    top_k: int,
    first_label: float,
    rounded: bool,
    tmp_path: Path,
) -> None:
    x, labels, axis, ignore = data
    x, classes = np.round(x) if rounded else 20 * x, x.shape[axis]  # ties, or probabilities below the floors
    labels.flat[0] *= first_label  # a fraction, or no class
    ignored = "" if ignore is None else f"ignore_label: {ignore}"
    arrays = {"x": x, "y": labels}
    if kind == "InfogainLoss":
        arrays["H"] = np.random.default_rng(0).normal(size=(1, classes**2))
    layer = f'type: "{kind}" ' + LABELLED[kind].format(axis, mode, ignored, min(top_k, classes))
    network = net_of(layer, {name: array.shape for name, array in arrays.items()})
    done = caffeport.export_onnx(network, tmp_path / "net.onnx", prove=False)
    check_onnx(done.path, network, **arrays)


@pytest.mark.parametrize("size", [4, 1])
@pytest.mark.parametrize(
    ("layer", "shapes"),
    [
        ('type: "SoftmaxWithLoss" top: "l"', {"x": (2, 3), "y": (2,)}),
        (
            'type: "SoftmaxWithLoss" top: "l" loss_param { normalize: false ignore_label: 1 }',
            {"x": (2, 3, 2, 5), "y": (2, 1, 2, 5)},
        ),
        ('type: "InfogainLoss" top: "l" top: "p"', {"x": (2, 3, 5), "y": (2, 5), "H": (1, 1, 3, 3)}),
        ('type: "SigmoidCrossEntropyLoss" top: "l"', {"x": (2, 3, 2), "y": (2, 6)}),
        ('type: "SigmoidCrossEntropyLoss" top: "l" loss_param { ignore_label: 0 }', {"x": (2,), "y": (2,)}),
        (
            'type: "SigmoidCrossEntropyLoss" top: "l" loss_param { ignore_label: 0 normalization: VALID }',
            {"x": (2, 4), "y": (2, 4)},
        ),
        ('type: "SigmoidCrossEntropyLoss" top: "l" loss_param { normalization: NONE }', {"x": (2, 4), "y": (2, 4)}),
        ('type: "MultinomialLogisticLoss" top: "l"', {"x": (2, 3, 1, 1), "y": (2, 1, 1, 1)}),
        ('type: "EuclideanLoss" top: "l"', {"x": (2, 3, 4), "y": (2, 12)}),
        ('type: "EuclideanLoss" top: "l"', {"x": (2,), "y": (2,)}),
        ('type: "HingeLoss" top: "l"', {"x": (2, 3, 2), "y": (2,)}),
        ('type: "HingeLoss" top: "l" hinge_loss_param { norm: L2 }', {"x": (2, 3), "y": (2, 1, 1, 2)}),
        (
            'type: "ContrastiveLoss" top: "l" contrastive_loss_param { margin: 2.5 }',
            {"x": (2, 3), "b": (2, 3, 1, 1), "y": (2,)},
        ),
        (
            'type: "ContrastiveLoss" top: "l" contrastive_loss_param { margin: 2.5 legacy_version: true }',
            {"x": (2, 3), "b": (2, 3), "y": (99, 1, 1, 1)},
        ),
        ('type: "Accuracy" top: "l"', {"x": (2, 3), "y": (2,)}),
        (
            'type: "Accuracy" top: "l" top: "each" accuracy_param { top_k: 2 ignore_label: 1 }',
            {"x": (2, 3, 2, 5), "y": (2, 1, 2, 5)},
        ),
    ],
)
def test_in_onnx_the_batch_stays_open(
    layer: str, shapes: dict[str, tuple[int, ...]], size: int, tmp_path: Path
) -> None:
    network = net_of(layer, shapes)
    done = caffeport.export_onnx(network, tmp_path / "net.onnx", opset=19, prove=size == 4)
    assert not done.notes
    rng = np.random.default_rng(size)
    arrays = {}
    for name, shape in shapes.items():
        shape = (size, *shape[1:]) if shape[0] == 2 else shape
        arrays[name] = rng.integers(0, 3, shape) if name == "y" else rng.normal(0, 3, shape)
    if "Multinomial" in layer:
        arrays["x"] = softmax(arrays["x"], 1) * (size > 1)  # 0 is below the floor
    check_onnx(done.path, network, **arrays)


@pytest.mark.parametrize("layer", ['type: "SoftmaxWithLoss" top: "l"', 'type: "Accuracy" top: "l" top: "each"'])
def test_in_onnx_height_and_width_stay_open(layer: str, tmp_path: Path) -> None:
    network = net_of(layer, {"x": (2, 3, 6, 7), "y": (2, 1, 6, 7)})
    done = caffeport.export_onnx(network, tmp_path / "net.onnx", spatial="dynamic")
    assert done.inputs == {"x": ("N", 3, "H", "W"), "y": ("N", 1, "H", "W")}
    rng = np.random.default_rng(0)
    for shape in [(2, 3, 6, 7), (1, 3, 4, 9)]:
        labels = rng.integers(0, 3, (shape[0], 1, *shape[2:]))
        check_onnx(done.path, net_of(layer, {"x": shape, "y": labels.shape}), x=rng.normal(size=shape), y=labels)


@pytest.mark.parametrize("layer", ["SoftmaxWithLoss", "HingeLoss", "Accuracy", "EuclideanLoss"])
def test_in_onnx_nan_scores_are_nan_or_right(layer: str, tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(2, 3))
    x[0, 1] = np.nan
    y = np.ones((2, 3) if layer == "EuclideanLoss" else 2)
    network = net_of(f'type: "{layer}" top: "l"', {"x": x.shape, "y": y.shape})
    check_onnx(caffeport.export_onnx(network, tmp_path / "net.onnx", prove=False).path, network, x=x, y=y)


def test_in_onnx_a_net_ends_in_its_loss(tmp_path: Path) -> None:
    net = """layer { name: "data" type: "Data" top: "data" top: "label" data_param { batch_size: 3 }
            transform_param { crop_size: 4 force_color: true } }
    layer { name: "fc" type: "InnerProduct" bottom: "data" top: "fc" inner_product_param { num_output: 5
            weight_filler { type: "xavier" } } }
    layer { name: "loss" type: "SoftmaxWithLoss" bottom: "fc" bottom: "label" top: "loss" }
    layer { name: "top 1" type: "Accuracy" bottom: "fc" bottom: "label" top: "accuracy" }"""
    network = caffeport.load(net.encode())
    done = caffeport.export_onnx(network, tmp_path / "net.onnx")
    assert done.inputs == {"data": ("N", 3, 4, 4), "label": ("N",)}
    assert done.outputs == {"loss": (), "accuracy": ()}
    assert done.report is not None
    assert done.report.passed
    rng = np.random.default_rng(0)
    check_onnx(done.path, network, data=rng.normal(size=(7, 3, 4, 4)), label=rng.integers(0, 5, 7))
