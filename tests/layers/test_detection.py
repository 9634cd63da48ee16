"""Detection layers against plain loops over NumPy numbers, written from the layers' formulas."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from caffeport import ShapeError
from caffeport.layers import Array
from caffeport.modules.boxes import nms
from tests.single import net_of, run, run_onnx

REL = 1e-6  # float64 against float64; constants are float32


def close(got: Array, want: Array) -> None:
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=REL, atol=REL * np.abs(want).max(initial=1e-9))


def numbers(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def iou(a: Array, b: Array, extra: float = 0) -> float:
    """Overlap of two boxes given by corners."""
    w, h = min(a[2], b[2]) - max(a[0], b[0]) + extra, min(a[3], b[3]) - max(a[1], b[1]) + extra
    if w <= 0 or h <= 0:
        return 0.0
    area_a, area_b = ((x[2] - x[0] + extra) * (x[3] - x[1] + extra) for x in (a, b))
    return float(w * h / (area_a + area_b - w * h))


def greedy(boxes: Array, threshold: float, *, extra: float = 0, eta: float = 1, inclusive: bool = False) -> list[int]:
    """Boxes that suppression keeps, best first."""
    kept: list[int] = []
    for i, box in enumerate(boxes):
        overlaps = [iou(box, boxes[j], extra) for j in kept]
        if not any(o >= threshold if inclusive else o > threshold for o in overlaps):
            kept.append(i)
            if eta < 1 and threshold > 0.5:
                threshold *= eta
    return kept


# ---- suppression

coordinate = st.integers(0, 12).map(float)
box = st.tuples(coordinate, coordinate, coordinate, coordinate)


@settings(max_examples=60)
@given(
    st.lists(box, max_size=40),
    st.sampled_from([0.0, 0.3, 0.7, 1.0]),
    st.sampled_from([0, 1]),
    st.sampled_from([1, 0.8]),
)
def test_suppression_keeps_what_a_greedy_loop_keeps(
    boxes: list[tuple[float, ...]], at: float, extra: int, eta: float
) -> None:
    array = np.array(boxes).reshape(-1, 4)
    # Two groups, the second in reverse order, and one box of each not valid.
    groups = torch.tensor(np.stack([array.T, array[::-1].T], 1))
    valid = torch.ones(2, len(boxes), dtype=torch.bool)
    valid[:, 1:2] = False
    got = nms(groups, valid, at, float(extra), eta=eta)
    for row, order in ((got[0], array), (got[1], array[::-1])):
        left = [i for i in range(len(boxes)) if i != 1]
        want = {left[i] for i in greedy(order[left], at, extra=extra, eta=eta)}
        assert set(row.nonzero().flatten().tolist()) == want


def test_suppression_of_more_boxes_than_one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("caffeport.modules.boxes.PAIRS", 1 << 10)
    corner = np.random.default_rng(0).random((300, 2)) * 20
    boxes = np.concatenate([corner, corner + 4], 1)
    for eta in (1, 0.97):
        got = nms(torch.tensor(boxes.T[:, None]), torch.ones(1, 300, dtype=torch.bool), 0.6, eta=eta)
        assert got[0].nonzero().flatten().tolist() == greedy(boxes, 0.6, eta=eta)
    some = nms(torch.tensor(boxes.T[:, None]), torch.ones(1, 300, dtype=torch.bool), 0.6, limit=10)
    assert some[0].nonzero().flatten().tolist()[:10] == greedy(boxes, 0.6)[:10]


def test_suppression_of_many_groups_runs_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    corner = np.random.default_rng(1).random((7, 40, 2)) * 6
    boxes = torch.tensor(np.concatenate([corner, corner + 4], 2).transpose(2, 0, 1))
    valid = torch.ones(7, 40, dtype=torch.bool)
    whole = nms(boxes, valid, 0.5)
    monkeypatch.setattr("caffeport.modules.boxes.PAIRS", 1 << 8)
    assert torch.equal(nms(boxes, valid, 0.5), whole)
    assert whole[3].nonzero().flatten().tolist() == greedy(boxes[:, 3].T.numpy(), 0.5)


def test_infinite_and_undefined_boxes_suppress_nothing() -> None:
    inf, nan = math.inf, math.nan
    boxes = torch.tensor([[0, 0, 2, 2], [-inf, -inf, inf, inf], [nan, 0, 2, 2], [-inf, -inf, inf, inf], [0, 0, 2, 2]])
    assert nms(boxes.t()[:, None], torch.ones(1, 5, dtype=torch.bool), 0.5).tolist() == [
        [True, True, True, True, False]
    ]


# ---- Normalize


@pytest.mark.parametrize("across", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_normalize(across: bool, shared: bool) -> None:
    x = numbers(2, 3, 4, 5)
    weight = np.array(1.5) if shared else np.array([1.5, -2.0, 0.5])
    text = f"norm_param {{ across_spatial: {str(across).lower()} channel_shared: {str(shared).lower()} }}"
    (got,) = run(f'type: "Normalize" top: "t" {text}', x, weights={"weight": weight})
    want = np.empty_like(x)
    for n, c, h, w in np.ndindex(x.shape):
        total = sum(v * v for v in (x[n] if across else x[n, :, h, w]).ravel())
        want[n, c, h, w] = x[n, c, h, w] / math.sqrt(total + 1e-10) * (weight if shared else weight[c])
    close(got, want)


def test_normalize_of_zeros_is_zero() -> None:
    (got,) = run('type: "Normalize" top: "t" norm_param { across_spatial: false }', np.zeros((1, 2, 2, 2), np.float32))
    assert not got.any()


# ---- priors


def test_prior_box() -> None:
    text = """type: "PriorBox" top: "t" prior_box_param { min_size: 7.9 min_size: 12 max_size: 20 max_size: 30
        aspect_ratio: 2 aspect_ratio: 0.5 aspect_ratio: 3 clip: true variance: 0.1 variance: 0.1 variance: 0.2
        variance: 0.3 step_h: 9 step_w: 11 offset: 0.25 }"""
    (got,) = run(text, np.zeros((1, 1, 3, 4)), np.zeros((1, 1, 30, 50)))
    want = []
    for row in range(3):
        for column in range(4):
            for low, high in ((7, 20), (12, 30)):  # 7.9 is cut
                sides = [(low, low), (math.sqrt(low * high),) * 2]
                sides += [
                    (low * math.sqrt(r), low / math.sqrt(r)) for r in (2, 1 / 2, 3, 1 / 3)
                ]  # 0.5 is there already
                for w, h in sides:
                    x, y = (column + 0.25) * 11, (row + 0.25) * 9
                    want += [(x - w / 2) / 50, (y - h / 2) / 30, (x + w / 2) / 50, (y + h / 2) / 30]
    close(got[0, 0], np.clip(want, 0, 1))
    close(got[0, 1], np.tile([0.1, 0.1, 0.2, 0.3], len(want) // 4))


def test_prior_box_step_is_the_ratio_of_the_sizes() -> None:
    (got,) = run(
        'type: "PriorBox" top: "t" prior_box_param { min_size: 4 img_h: 20 img_w: 30 }',
        np.zeros((1, 1, 3, 4)),
        np.zeros((1, 1, 8, 8)),
    )
    x, y = 0.5 * 30 / 4, 0.5 * 20 / 3
    close(got[0, 0, :4], np.array([(x - 2) / 30, (y - 2) / 20, (x + 2) / 30, (y + 2) / 20]))


BAD_PRIORS = [
    pytest.param("", "at least one min_size", id="no sizes"),
    pytest.param("min_size: 4 max_size: 3", "max_size must be above its min_size", id="max below min"),
    pytest.param("min_size: 4 max_size: 8 max_size: 9", "2 max_size for 1 min_size", id="too many max"),
    pytest.param("min_size: 4 variance: 0.1 variance: 0.2", "1 or 4 variances", id="two variances"),
    pytest.param("min_size: 4 img_size: 3 img_h: 3", "either img_size or both", id="image size twice"),
    pytest.param("min_size: 4 step_h: 3", "either step or both", id="half a step"),
]


@pytest.mark.parametrize("text, message", BAD_PRIORS)
def test_prior_box_errors(text: str, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        net_of(f'type: "PriorBox" top: "t" prior_box_param {{ {text} }}', [(1, 1, 2, 2), (1, 1, 9, 9)])


# ---- DetectionOutput


def decode(prior: Array, variance: Array, t: Array, code: str) -> Array:
    """One box from one prior; all four numbers each."""
    size = np.array([prior[2] - prior[0], prior[3] - prior[1]])
    if code == "CORNER":
        return prior + variance * t
    if code == "CORNER_SIZE":
        return prior + variance * t * np.tile(size, 2)
    centre = (prior[:2] + prior[2:]) / 2 + variance[:2] * t[:2] * size
    half = size * np.exp(variance[2:] * t[2:]) / 2
    return np.concatenate([centre - half, centre + half])


def detections(
    loc: Array,
    conf: Array,
    priors: Array,
    first: tuple[Array, Array] | None,
    *,
    code: str,
    shared: bool,
    threshold: float = 0.2,
    at: float = 0.4,
    top_k: int = 6,
    keep_top_k: int = 7,
) -> Array:
    """DetectionOutput as loops; background is label 0, an object's score must reach 0.3 in RefineDet."""
    count, classes = priors.shape[2] // 4, conf.shape[1] // (priors.shape[2] // 4)
    prior, variance = priors[0].reshape(2, count, 4)
    rows: list[list[float]] = []
    for n in range(len(loc)):
        found = []
        for label in range(1, classes):
            boxes, scores = [], []
            for p in range(count):
                part = 0 if shared else label
                box, score = prior[p], conf[n].reshape(count, classes)[p, label]
                if first is not None:
                    arm_conf, arm_loc = first
                    box = decode(box, variance[p], arm_loc[n].reshape(count, -1, 4)[p, part], code)
                    if arm_conf[n].reshape(count, 2)[p, 1] < 0.3:
                        score = 0.0
                boxes.append(decode(box, variance[p], loc[n].reshape(count, -1, 4)[p, part], code))
                scores.append(score)
            order = sorted((p for p in range(count) if scores[p] > threshold), key=lambda p: -scores[p])[:top_k]
            kept = [order[i] for i in greedy(np.array([boxes[p] for p in order]).reshape(-1, 4), at)]
            found += [[n, label, scores[p], *boxes[p]] for p in kept]
        best = sorted(found, key=lambda row: -row[2])[:keep_top_k]
        rows += [row for row in found if row in best]
    return np.array(rows or [[n] + [-1] * 6 for n in range(len(loc))])[None, None]


@pytest.mark.parametrize("code", ["CORNER", "CENTER_SIZE", "CORNER_SIZE"])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("refine", [False, True])
def test_detection_output(code: str, shared: bool, refine: bool) -> None:
    rng = np.random.default_rng(len(code) + 2 * shared + refine)
    images, count, classes = 2, 30, 4
    corner = rng.random((count, 2)) * 0.6
    prior = np.concatenate([corner, corner + 0.2 + 0.2 * rng.random((count, 2))], 1)
    priors = np.stack([prior.ravel(), np.tile([0.1, 0.1, 0.2, 0.2], count)])[None]
    parts = 1 if shared else classes
    loc, conf = rng.standard_normal((images, count * parts * 4)), rng.random((images, count * classes))
    first = (rng.random((images, count * 2)), rng.standard_normal((images, count * parts * 4))) if refine else None
    text = f"""type: "DetectionOutput" top: "t" detection_output_param {{ num_classes: {classes} code_type: {code}
        share_location: {str(shared).lower()} nms_param {{ nms_threshold: 0.4 top_k: 6 }} keep_top_k: 7
        confidence_threshold: 0.2 objectness_score: 0.3 }}"""
    (got,) = run(text, loc, conf, priors, *(first or ()))
    close(got, detections(loc, conf, priors, first, code=code, shared=shared))


def test_nothing_detected_gives_a_row_for_each_image() -> None:
    priors = np.tile([0.1, 0.1, 0.4, 0.4], 4).reshape(1, 2, 8)
    text = 'type: "DetectionOutput" top: "t" detection_output_param { num_classes: 3 confidence_threshold: 0.9 }'
    (got,) = run(text, np.zeros((2, 8)), np.full((2, 6), 0.5), priors)
    assert got.tolist() == [[[[0] + [-1] * 6, [1] + [-1] * 6]]]


@pytest.mark.parametrize("limits", ["top_k: 40", "top_k: 40 eta: 0.9", "eta: 0.7"])
def test_detection_output_in_onnx(limits: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(len(limits))
    corner = rng.random((60, 2)) * 0.6
    prior = np.concatenate([corner, corner + 0.2 + 0.2 * rng.random((60, 2))], 1)
    priors = np.stack([prior.ravel(), np.tile([0.1, 0.1, 0.2, 0.2], 60)])[None]
    loc, conf = rng.standard_normal((2, 240)), rng.random((2, 240))
    text = f"""type: "DetectionOutput" top: "t" detection_output_param {{ num_classes: 4 code_type: CENTER_SIZE
        confidence_threshold: 0.3 keep_top_k: 50 nms_param {{ nms_threshold: 0.8 {limits} }} }}"""
    net = net_of(text, [(1, 240), (1, 240), (1, 2, 240)])
    (got,), (want,) = run_onnx(net, tmp_path / "net.onnx", loc, conf, priors)
    assert 50 < want.shape[2] <= 100
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


BAD_DETECTIONS = [
    pytest.param("", "num_classes is missing", id="no classes"),
    pytest.param("num_classes: 3 nms_param { nms_threshold: -1 }", "nms_threshold must not be below 0", id="threshold"),
    pytest.param("num_classes: 3 nms_param { eta: 1.5 }", "eta must be in", id="eta"),
    pytest.param("num_classes: 4", r"bottom 'b1' has 6 values for each item, 2 priors need 8", id="classes do not fit"),
    pytest.param("num_classes: 3 background_label_id: -1", "background_label_id -1", id="background"),
]


@pytest.mark.parametrize("text, message", BAD_DETECTIONS)
def test_detection_output_errors(text: str, message: str) -> None:
    with pytest.raises(ShapeError, match=rf"layer 'l' \(DetectionOutput\): .*{message}"):
        net_of(f'type: "DetectionOutput" top: "t" detection_output_param {{ {text} }}', [(1, 8), (1, 6), (1, 2, 8)])


# ---- YOLO
