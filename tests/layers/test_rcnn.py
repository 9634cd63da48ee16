"""Region layers against plain loops over NumPy numbers, written from the layers' formulas, and against OpenCV."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from caffeport import FormatError, InputError, ShapeError, UnsupportedLayer, export_onnx
from caffeport.layers import Array
from caffeport.layers.rcnn import python_numbers
from caffeport.modules.rcnn import PSROIPool, ROIPool, generate_anchors, round_half_away
from tests.layers.test_detection import greedy
from tests.single import net_of, run, run_onnx

f32 = np.float32


def half_away(x: float) -> float:
    return math.copysign(math.floor(abs(x) + 0.5), x)


@given(st.floats(-1e6, 1e6, width=32))
def test_rounding_is_that_of_c(x: float) -> None:
    assert round_half_away(torch.tensor(x)).item() == half_away(x)


def regions(seed: int) -> Array:
    """Of two images of 100 x 140 pixels: inside, over the edges, outside, of no size, upside down."""
    rng = np.random.default_rng(seed)
    rois = np.concatenate([rng.integers(0, 2, (12, 1)), rng.uniform(-30, 160, (12, 4))], 1)
    rois[:4, 3:] = rois[:4, 1:3] + rng.uniform(0, 60, (4, 2))
    rois[4] = (1, 24, 8, 24, 8)
    rois[5] = (0, 0, 0, 139, 99)
    rois[6] = (0, 500, 500, 600, 600)
    return rois.astype(f32)


@pytest.mark.parametrize("size", [(7, 7), (2, 5), (1, 1)])
def test_roi_pooling(size: tuple[int, int]) -> None:
    x, rois, scale = np.random.default_rng(1).standard_normal((2, 3, 13, 18)).astype(f32), regions(0), f32(1 / 8)
    want = np.zeros((len(rois), 3, *size), f32)
    for r, roi in enumerate(rois):
        x1, y1, x2, y2 = (int(half_away(float(v * scale))) for v in roi[1:])
        extents = (f32(max(y2 - y1 + 1, 1)), f32(max(x2 - x1 + 1, 1)))
        for i, j in np.ndindex(*size):
            edges = []
            for place, count, extent, start, length in zip((i, j), size, extents, (y1, x1), x.shape[2:], strict=True):
                step = f32(extent / f32(count))
                first, end = math.floor(f32(place) * step) + start, math.ceil(f32(place + 1) * step) + start
                edges.append(slice(min(max(first, 0), length), min(max(end, 0), length)))
            window = x[int(roi[0]), :, edges[0], edges[1]]
            if window.size:
                want[r, :, i, j] = window.max((1, 2))
    param = f"pooled_h: {size[0]} pooled_w: {size[1]} spatial_scale: 0.125"
    text = f'type: "ROIPooling" top: "t" roi_pooling_param {{ {param} }}'
    np.testing.assert_array_equal(run(text, x, rois)[0], want)
    np.testing.assert_array_equal(run(text, x, rois[:, :, None, None])[0], want)
    assert run(text, x.astype(np.float64), rois.astype(np.float64))[0].dtype == np.float64


def test_roi_pooling_in_pieces_and_its_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.from_numpy(np.random.default_rng(1).standard_normal((2, 2, 4, 5))).requires_grad_()
    rois, pool = torch.from_numpy(regions(0)), ROIPool((2, 3), 1 / 28)
    whole = pool(x, rois)
    monkeypatch.setattr("caffeport.modules.rcnn.CHUNK", 1)
    assert torch.equal(pool(x, rois), whole)
    assert torch.autograd.gradcheck(lambda x: pool(x, rois), x)


def position_sensitive_means(x: Array, rois: Array, outputs: int, group: int, scale: np.float32) -> Array:
    """PSROIPooling as loops."""
    want = np.zeros((len(rois), outputs, group, group))
    for r, roi in enumerate(rois):
        low, high = (
            [f32(f32(half_away(float(v)) + one) * scale) for v in part] for part, one in ((roi[1:3], 0), (roi[3:], 1))
        )
        for d, i, j in np.ndindex(outputs, group, group):
            edges = []
            for place, axis, length in ((i, 1, x.shape[2]), (j, 0, x.shape[3])):
                step = f32(max(high[axis] - low[axis], f32(0.1)) / f32(group))
                first, end = math.floor(f32(place) * step + low[axis]), math.ceil(f32(place + 1) * step + low[axis])
                edges.append(slice(min(max(first, 0), length), min(max(end, 0), length)))
            window = x[int(roi[0]), (d * group + i) * group + j, edges[0], edges[1]]
            want[r, d, i, j] = window.mean() if window.size else 0
    return want


def test_psroi_pooling() -> None:
    x, rois = np.random.default_rng(1).standard_normal((2, 18, 13, 18)), regions(2)
    want = position_sensitive_means(x, rois, 2, 3, f32(1 / 8))
    text = 'type: "PSROIPooling" top: "t" psroi_pooling_param { output_dim: 2 group_size: 3 spatial_scale: 0.125 }'
    np.testing.assert_allclose(run(text, x, rois.astype(np.float64))[0], want, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(run(text, x.astype(f32), rois)[0], want, rtol=1e-5, atol=1e-6)
    tensor = torch.from_numpy(x[:, :9, :4, :5].copy()).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: PSROIPool(1, 3, 1 / 28)(x, torch.from_numpy(rois)), tensor)


@given(st.lists(st.tuples(st.integers(0, 1), *[st.floats(-1e9, 1e9, width=32)] * 4), min_size=1, max_size=4))
def test_psroi_pooling_of_boxes_with_any_corners(boxes: list[tuple[float, ...]]) -> None:
    x, rois = np.random.default_rng(1).standard_normal((2, 8, 5, 6)), np.array(boxes, f32)
    got = PSROIPool(2, 2, 0.125)(torch.from_numpy(x), torch.from_numpy(rois)).numpy()
    np.testing.assert_allclose(got, position_sensitive_means(x, rois, 2, 2, f32(0.125)), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("outputs, group, scale", [(2, 3, 0.125), (1, 1, 1), (3, 7, 0.0625)])
def test_psroi_pooling_in_onnx(outputs: int, group: int, scale: float, tmp_path: Path) -> None:
    param = f"output_dim: {outputs} group_size: {group} spatial_scale: {scale}"
    channels = outputs * group**2
    net = net_of(
        f'type: "PSROIPooling" top: "t" psroi_pooling_param {{ {param} }}', [(2, channels, 4, 4), (1, 5, 1, 1)]
    )
    x = np.random.default_rng(1).standard_normal((2, channels, 13, 18)).astype(f32)
    rois = np.concatenate([regions(seed) for seed in range(4)])
    rois[12:24, 1:] = np.round(rois[12:24, 1:] * 2) / 2  # halves, which are rounded away from zero
    (got,), (want,) = run_onnx(net, tmp_path / "net.onnx", x, rois[:, :, None, None])
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("pool", [ROIPool((2, 2), 0.125), PSROIPool(2, 2, 0.125)], ids=["ROIPooling", "PSROIPooling"])
def test_regions_without_numbers_or_without_an_image(pool: torch.nn.Module) -> None:
    x = torch.from_numpy(np.random.default_rng(1).standard_normal((2, 8, 5, 6)))
    nan, inf = math.nan, math.inf
    assert pool(x, torch.tensor([[0, nan, 0, 20, nan], [1, -inf, 3, inf, inf]])).isfinite().all()
    for image in (-1, 2, nan):
        with pytest.raises(ValueError, match="the feature map has 2: 0 to 1"):
            pool(x, torch.tensor([[image, 0, 0, 20, 20]]))


@pytest.mark.parametrize(
    "text",
    [
        "ROIPooling roi_pooling_param { pooled_h: 2 pooled_w: 2 }",
        "PSROIPooling psroi_pooling_param { output_dim: 2 group_size: 2 spatial_scale: 0.125 }",
    ],
)
def test_a_net_names_the_layer_of_a_region_without_an_image(text: str) -> None:
    type_, _, param = text.partition(" ")
    net = net_of(f'type: "{type_}" top: "t" {param}', [(2, 8, 5, 6), (1, 5)])
    x, rois = torch.zeros(2, 8, 5, 6), torch.tensor([[2.0, 0, 0, 20, 20]])
    for run_net in (net, net.blobs):
        with pytest.raises(
            InputError, match=rf"layer 'l' \({type_}\): regions name the images 2 to 2; .* has 2: 0 to 1"
        ):
            run_net(x, rois)


BAD_REGIONS = [
    pytest.param(
        "ROIPooling", "roi_pooling_param { pooled_h: 2 }", (3, 5), "pooled_h and pooled_w must be above 0", id="size"
    ),
    pytest.param("ROIPooling", "roi_pooling_param { pooled_h: 2 pooled_w: 2 }", (3, 4), "must be R x 5", id="rois"),
    pytest.param("PSROIPooling", "psroi_pooling_param { output_dim: 2 }", (3, 5), "must be given", id="parameters"),
    pytest.param(
        "PSROIPooling",
        "psroi_pooling_param { output_dim: 2 group_size: 2 spatial_scale: 1 }",
        (3, 5),
        "need 8 channels, bottom is 1 x 9 x 4 x 4",
        id="channels",
    ),
]


@pytest.mark.parametrize("type_, text, rois, message", BAD_REGIONS)
def test_pooling_errors(type_: str, text: str, rois: tuple[int, int], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        net_of(f'type: "{type_}" top: "t" {text}', [(1, 9, 4, 4), rois])


def test_opencv_pools_the_same_regions() -> None:
    cv2 = pytest.importorskip("cv2")
    x, rois = np.random.default_rng(1).standard_normal((1, 4, 13, 18)).astype(f32), regions(3)
    rois[:, 0] = 0
    text = 'type: "ROIPooling" top: "t" roi_pooling_param { pooled_h: 3 pooled_w: 4 spatial_scale: 0.125 }'
    net = cv2.dnn.readNetFromCaffe(
        np.frombuffer(
            b'input: "b0" input_shape { dim: 1 dim: 4 dim: 13 dim: 18 } input: "b1" input_shape { dim: 12 dim: 5 }'
            + f'layer {{ name: "l" bottom: "b0" bottom: "b1" {text} }}'.encode(),
            np.uint8,
        )
    )
    net.setInput(x, "b0")
    net.setInput(rois, "b1")
    np.testing.assert_array_equal(run(text, x, rois)[0], net.forward("l"))


# ---- proposals


def test_first_anchors_of_py_faster_rcnn() -> None:
    anchors = generate_anchors(16, (0.5, 1, 2), (8, 16, 32), half_to_even=True)
    assert anchors[0].tolist() == [-84, -40, 99, 55]
    assert anchors[8].tolist() == [-168, -344, 183, 359]


def proposals(
    scores: Array, deltas: Array, info: Array, anchors: Array, *, python: bool, **limits: Any
) -> tuple[Array, Array]:
    """Both proposal layers as loops: rois and scores."""
    count = len(anchors)
    height, width = info[0], info[1]
    found = []
    for y, x, a in np.ndindex(*scores.shape[2:], count):
        anchor = anchors[a] + limits["stride"] * np.array([x, y, x, y])
        t = deltas[0, 4 * a : 4 * a + 4, y, x]
        size = anchor[2:] - anchor[:2] + 1
        centre = anchor[:2] + size / 2 + t[:2] * size
        half = size * np.exp(t[2:]) / 2
        low, high = (np.clip(corner, 0, [width - 1, height - 1]) for corner in (centre - half, centre + half))
        least = limits["min_size"] * (np.full(2, info[2]) if python else info[[3, 2]])
        score = scores[0, count + a, y, x]
        if (high - low + 1 < least).any():
            if python:
                continue
            score = 0.0
        found.append((score, *low, *high))
    table = np.array(sorted(found, key=lambda row: -row[0])[: limits["before"]]).reshape(-1, 5)
    kept = table[greedy(table[:, 1:], limits["at"], extra=1)[: limits["after"]]]
    return np.concatenate([np.zeros((len(kept), 1)), kept[:, 1:]], 1), kept[:, 0]


@pytest.mark.parametrize("python", [True, False])
def test_proposal(python: bool) -> None:
    rng = np.random.default_rng(3)
    scores, deltas = rng.random((1, 12, 5, 7)), rng.standard_normal((1, 24, 5, 7)) * 0.5
    anchors = generate_anchors(16, (0.5, 1, 2), (1, 3), half_to_even=python).astype(float)
    info = np.array([80, 112, 1.5, 1.0] if not python else [80, 112, 1.5])
    limits = {"stride": 16, "min_size": 16, "before": 6000, "after": 300, "at": 0.7}
    text = """type: "Python" python_param { module: "rpn.proposal_layer" layer: "ProposalLayer"
        param_str: "{'feat_stride': 16, 'scales': (1, 3)}" }"""
    if not python:
        limits |= {"min_size": 20, "before": 150, "after": 20, "at": 0.5}
        text = """type: "Proposal" proposal_param { ratio: 0.5 ratio: 1 ratio: 2 scale: 1 scale: 3 min_size: 20
            pre_nms_topn: 150 post_nms_topn: 20 nms_thresh: 0.5 }"""
    rois, score = run(f'{text} top: "rois" top: "scores"', scores, deltas, info[None])
    want_rois, want_score = proposals(scores, deltas, info, anchors, python=python, **limits)
    np.testing.assert_allclose(rois, want_rois, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(score, want_score[:, None] if python else want_score, rtol=1e-12)


PROPOSALS = [
    """type: "Python" python_param { module: "rpn.proposal_layer" layer: "ProposalLayer"
    param_str: "{'feat_stride': 16, 'scales': (1, 3)}" }""",
    *(
        f'type: "Proposal" proposal_param {{ ratio: 0.5 ratio: 1 ratio: 2 scale: 1 scale: 3 {limits} }}'
        for limits in ("", "min_size: 20 pre_nms_topn: 150 post_nms_topn: 20 nms_thresh: 0.5", "min_size: 0")
    ),
]


@pytest.mark.parametrize("text", PROPOSALS)
def test_proposal_in_onnx(text: str, tmp_path: Path) -> None:
    numbers = 3 if "Python" in text else 4
    net = net_of(f'{text} top: "rois" top: "scores"', [(1, 12, 2, 3), (1, 24, 2, 3), (1, numbers)])
    for seed in range(5):
        rng = np.random.default_rng(seed)
        height, width = rng.integers(1, 12, 2)
        scores, deltas = rng.random((1, 12, height, width)), rng.standard_normal((1, 24, height, width)) * 0.5
        info = np.array([[16 * height, 16 * width, 1.5, 1][:numbers]])
        if seed == 4:
            scores = np.round(scores, 1)  # ties
        (rois, score), (want_rois, want_score) = run_onnx(net, tmp_path / "net.onnx", scores, deltas, info)
        np.testing.assert_array_equal(score, want_score)
        np.testing.assert_allclose(rois, want_rois, rtol=1e-5, atol=1e-4)


def test_proposal_without_a_box_gives_no_rows(tmp_path: Path) -> None:
    text = """top: "rois" top: "s" type: "Python" python_param {
        module: "rpn.proposal_layer" layer: "ProposalLayer" param_str: "'feat_stride': 16" }"""
    bottoms = np.zeros((1, 18, 2, 2)), np.zeros((1, 36, 2, 2)), np.array([[4, 4, 1]])
    for rois, scores in run_onnx(net_of(text, [x.shape for x in bottoms]), tmp_path / "net.onnx", *bottoms):
        assert rois.shape == (0, 5)
        assert scores.shape == (0, 1)


def test_a_threshold_that_onnx_cannot_say(tmp_path: Path) -> None:
    net = net_of(
        'type: "Proposal" top: "t" proposal_param { ratio: 1 scale: 1 nms_thresh: 1.5 }',
        [(1, 2, 2, 2), (1, 4, 2, 2), (1, 4)],
    )
    with pytest.raises(UnsupportedLayer, match=r"thresholds from 0 to 1, not 1\.5"):
        export_onnx(net, tmp_path / "net.onnx")


STRIDE = [
    pytest.param("'feat_stride': 16", {"feat_stride": [16]}, id="as published"),
    pytest.param("feat_stride: 16\nscales: [8, 16]", {"feat_stride": [16], "scales": [8, 16]}, id="YAML"),
    pytest.param("feat_stride: 8\nscales:\n- 4\n- 8\n", {"feat_stride": [8], "scales": [4, 8]}, id="YAML list"),
    pytest.param('{"scales": (1, 2.5), "phase": "TEST"}', {"scales": [1, 2.5]}, id="tuple, and a word left out"),
    pytest.param("{'ratios': [0.5, 1e0], 'x': [a]}", {"ratios": [0.5, 1]}, id="not numbers left out"),
    pytest.param("", {}, id="empty"),
]


@pytest.mark.parametrize("text, want", STRIDE)
def test_parameters_of_a_python_layer(text: str, want: dict[str, list[float]]) -> None:
    assert python_numbers(text) == want


def test_a_python_proposal_without_stride_says_so() -> None:
    with pytest.raises(FormatError, match="param_str must give feat_stride"):
        net_of(
            'type: "Python" top: "t" python_param { module: "rpn.proposal_layer" layer: "ProposalLayer" }',
            [(1, 18, 2, 2), (1, 36, 2, 2), (1, 3)],
        )


BAD_PROPOSALS = [
    pytest.param([(2, 4, 2, 2), (2, 8, 2, 2), (1, 4)], "one image only", id="two images"),
    pytest.param([(1, 6, 2, 2), (1, 8, 2, 2), (1, 4)], "2 anchors need 1 x 4 x H x W", id="channels"),
    pytest.param([(1, 4, 2, 2), (1, 8, 2, 3), (1, 4)], "the maps must be of one size", id="sizes"),
    pytest.param([(1, 4, 2, 2), (1, 8, 2, 2), (1, 3)], "im_info must hold 4 numbers", id="im_info"),
]


@pytest.mark.parametrize("shapes, message", BAD_PROPOSALS)
def test_proposal_errors(shapes: list[tuple[int, ...]], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        net_of('type: "Proposal" top: "t" proposal_param { ratio: 1 scale: 1 scale: 2 }', shapes)


def test_the_form_with_max_rois_is_refused() -> None:
    with pytest.raises(UnsupportedLayer, match="max_rois is not described"):
        net_of('type: "Proposal" top: "t" proposal_param { max_rois: 300 }', [(1, 4, 2, 2), (1, 8, 2, 2), (1, 4)])
