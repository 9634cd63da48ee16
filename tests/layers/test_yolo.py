"""YOLO's layers against loops."""

import math
from pathlib import Path

import numpy as np
import pytest

from caffeport import ShapeError
from caffeport.layers import Array
from tests.layers.test_detection import close, greedy, numbers, sigmoid
from tests.single import net_of, run, run_onnx


@pytest.mark.parametrize("s", [2, 3])
def test_reorg_is_darknets_order(s: int) -> None:
    x = numbers(2, 2 * s * s, 2 * s, s)
    (n, c, h, w), small = x.shape, 2
    want = np.empty((n, c, h, w))
    flat = x.reshape(n, small, h * s, w * s)  # the bottom, read as a map with fewer channels
    for i, k, y, z in np.ndindex(n, c, h, w):
        want[i, k, y, z] = flat[i, k % small, y * s + k // small // s, z * s + k // small % s]
    (got,) = run(f'type: "Reorg" top: "t" reorg_param {{ stride: {s} }}', x)
    np.testing.assert_array_equal(got, want.reshape(n, c * s * s, h // s, w // s))


def test_reorg_reverse() -> None:
    x, s = numbers(2, 8, 3, 2), 2
    want = np.empty((2, 2, 6, 4))
    for n, c, y, z in np.ndindex(x.shape):
        want[n, c % 2, y * s + c // 2 // s, z * s + c // 2 % s] = x[n, c, y, z]
    (got,) = run('type: "Reorg" top: "t" reorg_param { stride: 2 reverse: true }', x)
    np.testing.assert_array_equal(got, want)


def test_reorg_refuses_what_does_not_divide() -> None:
    with pytest.raises(ShapeError, match=r"1 x 4 x 3 x 2 does not divide by stride 2; .*multiples of 4 x 2 x 2"):
        net_of('type: "Reorg" top: "t" reorg_param { stride: 2 }', [(1, 4, 3, 2)])


def test_region_yolo() -> None:
    x, boxes, coords, classes = numbers(2, 16, 2, 3), 2, 4, 3
    want = x.copy()
    for n, b, h, w in np.ndindex(2, boxes, 2, 3):
        cell = want[n, b * 8 : b * 8 + 8, h, w]
        for k in (0, 1, coords):
            cell[k] = sigmoid(cell[k])
        e = np.exp(cell[coords + 1 :])
        cell[coords + 1 :] = e / e.sum()
    (got,) = run(f'type: "RegionYolo" top: "t" region_yolo_param {{ num: {boxes} classes: {classes} }}', x)
    close(got, want.reshape(2, -1))


def yolo_rows(candidates: list[tuple[float, int, list[float]]], at: float) -> Array:
    """Rows of (score, label, centre and size) after suppression over all of them."""
    candidates = sorted(candidates, key=lambda c: -c[0])
    corners = np.array([[x - w / 2, y - h / 2, x + w / 2, y + h / 2] for _, _, (x, y, w, h) in candidates])
    kept = greedy(corners, at, inclusive=True)
    return np.array([[0, candidates[i][1] + 1, candidates[i][0], *corners[i]] for i in kept])[None, None]


def test_yolo_detection_output() -> None:
    anchors, classes = [(1.0, 2.0), (3.0, 1.5)], 3
    maps = [numbers(2, 16, 3, 3), numbers(2, 16, 2, 2, seed=1)]
    candidates: list[tuple[float, int, list[float]]] = []
    for x in maps:
        side = x.shape[2]
        for n, j, i, b in np.ndindex(2, side, side, 2):
            t = x[n, 8 * b : 8 * b + 8, j, i]
            chance = np.exp(t[5:]) / np.exp(t[5:]).sum()
            score = sigmoid(t[4]) * chance.max()
            size = [math.exp(t[2]) * anchors[b][0] / side, math.exp(t[3]) * anchors[b][1] / side]
            if score >= 0.2:
                box = [(i + sigmoid(t[0])) / side, (j + sigmoid(t[1])) / side, *size]
                candidates.append((score, int(chance.argmax()), box))
    text = f"""type: "YoloDetectionOutput" top: "t" yolo_detection_output_param {{ num_classes: {classes} num_box: 2
        confidence_threshold: 0.2 nms_threshold: 0.3 biases: 1 biases: 2 biases: 3 biases: 1.5 }}"""
    (got,) = run(text, *maps)
    want = yolo_rows(candidates, 0.3)
    assert 3 < want.shape[2] < len(candidates)
    close(got, want)


def test_yolov3_detection_output() -> None:
    biases, masks, scales = [(10, 14), (23, 27), (37, 58), (81, 82)], [[2, 3], [0, 1]], [8, 4]
    maps = [numbers(2, 14, 2, 2), numbers(2, 14, 4, 4, seed=1)]
    candidates: list[tuple[float, int, list[float]]] = []
    for x, mask, scale in zip(maps, masks, scales, strict=True):
        side = x.shape[2]
        for n, j, i, b in np.ndindex(2, side, side, 2):
            t = x[n, 7 * b : 7 * b + 7, j, i]
            width, height = biases[mask[b]]
            size = [math.exp(t[2]) * width / (side * scale), math.exp(t[3]) * height / (side * scale)]
            box = [(i + sigmoid(t[0])) / side, (j + sigmoid(t[1])) / side, *size]
            scores = [sigmoid(t[4]) * sigmoid(v) for v in t[5:]]
            candidates += [(score, label, box) for label, score in enumerate(scores) if score > 0.3]
    text = f"""type: "Yolov3DetectionOutput" top: "t" yolov3_detection_output_param {{ num_classes: 2 num_box: 2
        confidence_threshold: 0.3 nms_threshold: 0.45 {" ".join(f"biases: {v}" for pair in biases for v in pair)}
        mask: 2 mask: 3 mask: 0 mask: 1 anchors_scale: 8 anchors_scale: 4 }}"""
    (got,) = run(text, *maps)
    want = yolo_rows(candidates, 0.45)
    assert 3 < want.shape[2] < len(candidates)
    close(got, want)


def test_yolo_without_detections() -> None:
    text = """type: "YoloDetectionOutput" top: "t" yolo_detection_output_param { num_classes: 3 num_box: 1
        confidence_threshold: 0.99 biases: 1 biases: 1 }"""
    (got,) = run(text, np.zeros((2, 8, 2, 2)))
    assert got.tolist() == [[[[0] + [-1] * 6, [1] + [-1] * 6]]]


YOLO = {
    "YoloDetectionOutput yolo_detection_output_param": """num_classes: 2 num_box: 2 confidence_threshold: 0.2
        nms_threshold: 0.3 biases: 1 biases: 2 biases: 3 biases: 1.5""",
    "Yolov3DetectionOutput yolov3_detection_output_param": """num_classes: 2 num_box: 2 confidence_threshold: 0.3
        biases: 10 biases: 14 biases: 23 biases: 27 biases: 37 biases: 58 biases: 81 biases: 82
        mask: 2 mask: 3 mask: 0 mask: 1 anchors_scale: 8 anchors_scale: 4""",
}


@pytest.mark.parametrize("type_, param, text", [(*key.split(), text) for key, text in YOLO.items()], ids=["2", "3"])
@pytest.mark.parametrize("shift", [0, -9], ids=["boxes", "nothing found"])
def test_yolo_in_onnx(type_: str, param: str, text: str, shift: float, tmp_path: Path) -> None:
    net = net_of(f'type: "{type_}" top: "t" {param} {{ {text} }}', [(1, 14, 2, 3), (1, 14, 2, 3)])
    maps = [numbers(2, 14, 5, 4, seed=seed) + shift for seed in (1, 2)]
    (got,), (want,) = run_onnx(net, tmp_path / "net.onnx", *maps)
    assert got.shape == want.shape
    assert want.shape[2] == 2 if shift else want.shape[2] > 5
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


BAD_YOLO = [
    pytest.param("num_classes: 3 num_box: 2 biases: 1 biases: 1", "2 boxes need 4 biases", id="biases"),
    pytest.param("num_classes: 4 num_box: 1 biases: 1 biases: 1", "need N x 9 x H x W", id="channels"),
    pytest.param("num_box: 1 biases: 1 biases: 1", "num_classes is missing", id="classes"),
]


@pytest.mark.parametrize("text, message", BAD_YOLO)
def test_yolo_errors(text: str, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        net_of(f'type: "YoloDetectionOutput" top: "t" yolo_detection_output_param {{ {text} }}', [(1, 8, 2, 2)])


def test_upsample_with_one_bottom_repeats_pixels() -> None:
    x = numbers(2, 3, 2, 4)
    (got,) = run('type: "Upsample" top: "t" upsample_param { scale: 3 }', x)
    np.testing.assert_array_equal(got, x.repeat(3, 2).repeat(3, 3))
