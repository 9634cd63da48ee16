"""Our own modules against the nearest stock PyTorch composition: `python tests/bench/layers.py`.

One line a case: milliseconds of ours, of the composition, and the ratio of the best of alternating runs on one thread.
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from caffeport.modules.convolution import Im2col
from caffeport.modules.detection import DetectionOutput, PriorBox
from caffeport.modules.normalization import MVN, LocalResponseNorm, WithinChannelLRN
from caffeport.modules.pooling import MaxPoolMask, Pool, SpatialPyramid
from caffeport.modules.rcnn import Proposal, ROIPool, generate_anchors
from caffeport.modules.recurrent import LSTM, RNN
from caffeport.modules.segmentation import Interp

Call = Callable[[], object]
SIZES = [[30.0, 30.0], [42.4, 42.4], [42.4, 21.2], [21.2, 42.4]]  # of the priors of a cell
VARIANCE = [0.1, 0.1, 0.2, 0.2]


def cases() -> dict[str, tuple[Call, Call]]:
    """Name -> (ours, stock)."""
    torch.manual_seed(0)
    x = torch.randn(4, 96, 55, 55)
    small = torch.randn(4, 256, 13, 13)
    lrn, within, mvn = LocalResponseNorm(5, 1e-4, 0.75, 1.0), WithinChannelLRN(5, 1e-4, 0.75), MVN(True, False, 1e-9)
    mask, wide = MaxPoolMask((3, 3), (2, 2), (1, 1)), Pool("average", (3, 3), (2, 2), (2, 2))
    sparse, pyramid = Pool("max", (2, 2), (3, 3), (0, 0)), SpatialPyramid("max", 3)
    columns = Im2col((3, 3), (1, 1), (1, 1), (1, 1))
    interp = Interp((110, 110), None, None, (0, 0))
    features, pool = torch.randn(1, 512, 38, 50), ROIPool((7, 7), 1 / 16)
    corner, extent = torch.rand(300, 2) * 400, torch.rand(300, 2) * 250 + 20
    rois = torch.cat([torch.zeros(300, 1), corner, corner + extent], 1)
    loc, conf, priors = _ssd(8732, 21)
    detect = DetectionOutput(21, True, 0, "CENTER_SIZE", False, 0.01, 0.45, 1.0, 400, 200, None)
    cells, picture, prior_box = (
        torch.zeros(1, 512, 38, 38),
        torch.zeros(1, 3, 300, 300),
        PriorBox(SIZES, VARIANCE, None, None, 0.5, False),
    )
    anchors = generate_anchors(16, (0.5, 1, 2), (8, 16, 32), half_to_even=False)
    proposal = Proposal(anchors.tolist(), 16, 16, 6000, 300, 0.7, False, True)
    objects, deltas = torch.randn(1, 18, 38, 63).softmax(1), torch.randn(1, 36, 38, 63) * 0.2
    info, anchors = torch.tensor([[600.0, 1000.0, 1.0, 1.0]]), torch.as_tensor(anchors).float()
    steps, streams, inputs, hidden = 20, 16, 512, 512
    sequence, going = torch.randn(steps, streams, inputs), torch.ones(steps, streams)
    going[0] = 0
    stopping = going.clone()
    stopping[steps // 2, ::2] = 0
    lstm, stock_lstm = LSTM(inputs, hidden), nn.LSTM(inputs, hidden)
    rnn, stock_rnn, out = RNN(inputs, hidden), nn.RNN(inputs, hidden), nn.Linear(hidden, hidden)
    for module in (lstm, rnn):
        for parameter in module.parameters():
            nn.init.uniform_(parameter, -0.05, 0.05)
    return {
        "LRN across channels": (lambda: lrn(x), lambda: F.local_response_norm(x, 5, 1e-4, 0.75, 1.0)),
        "LRN within channel": (lambda: within(x), lambda: x / (1 + 1e-4 * F.avg_pool2d(x * x, 5, 1, 2)) ** 0.75),
        "MVN": (lambda: mvn(x), lambda: F.instance_norm(x)),
        "Pooling with mask": (lambda: mask(x), lambda: F.max_pool2d(x, 3, 2, 1, ceil_mode=True, return_indices=True)),
        "Pooling AVE, pad 2 of 3": (lambda: wide(x), lambda: F.avg_pool2d(F.pad(x, (2,) * 4), 3, 2, ceil_mode=True)),
        "Pooling MAX, stride over kernel": (lambda: sparse(x), lambda: F.max_pool2d(F.pad(x, (0, 1, 0, 1)), 2, 3)),
        "SPP": (lambda: pyramid(small), lambda: _pyramid(small)),
        "Interp": (
            lambda: interp(x),
            lambda: F.interpolate(x, (110, 110), mode="bilinear", align_corners=True),
        ),
        "ROIPooling, 300 regions": (lambda: pool(features, rois), lambda: _roi_pool(features, rois)),
        "DetectionOutput, SSD300": (lambda: detect(loc, conf, priors), lambda: _detections(loc, conf, priors)),
        "PriorBox, 38 x 38": (lambda: prior_box(cells, picture), _priors),
        "Proposal, 600 x 1000": (
            lambda: proposal(objects, deltas, info)[0][:, 1:],
            lambda: _proposals(objects[0, 9:], deltas, anchors),
        ),
        "Im2col": (lambda: columns(x), lambda: F.unfold(x, 3, padding=1)),
        "LSTM, no restart": (lambda: lstm(sequence, going), lambda: stock_lstm(sequence)),
        "LSTM, restarts": (lambda: lstm(sequence, stopping), lambda: stock_lstm(sequence)),
        "RNN": (lambda: rnn(sequence, going), lambda: torch.tanh(out(stock_rnn(sequence)[0]))),
    }


def _ssd(count: int, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Locations, scores and priors as SSD300 gives them: nearly all priors see background."""
    corner = torch.rand(count, 2) * 0.8
    boxes = torch.cat([corner, corner + 0.05 + 0.15 * torch.rand(count, 2)], 1).flatten()
    scores = torch.randn(1, count, classes) * 1.5
    scores[..., 0] += 6
    variance = torch.tensor([0.1, 0.1, 0.2, 0.2]).repeat(count)
    return torch.randn(1, 4 * count) * 0.5, scores.softmax(2).flatten(1), torch.stack([boxes, variance])[None]


def _detections(loc: Tensor, conf: Tensor, priors: Tensor) -> Tensor:
    """DetectionOutput as one would compose it: a class at a time, a kept box at a time."""
    prior, variance = priors[0].reshape(2, -1, 4)
    size = prior[:, 2:] - prior[:, :2]
    delta = loc.reshape(-1, 4) * variance
    centre, extent = prior[:, :2] + size / 2 + delta[:, :2] * size, delta[:, 2:].exp() * size
    boxes, scores = torch.cat([centre - extent / 2, centre + extent / 2], 1), conf.reshape(prior.shape[0], -1)
    rows = []
    for label in range(1, scores.shape[1]):
        chosen = (scores[:, label] > 0.01).nonzero()[:, 0]
        score, order = scores[chosen, label].sort(descending=True, stable=True)
        score, rest = score[:400], boxes[chosen[order[:400]]]
        while len(rest):
            rows.append(torch.cat([torch.tensor([0.0, label]), score[:1], rest[0]]))
            inner = torch.minimum(rest[:1, 2:], rest[:, 2:]) - torch.maximum(rest[:1, :2], rest[:, :2])
            common = inner.clamp(min=0).prod(1)
            area = (rest[:, 2:] - rest[:, :2]).prod(1)
            keep = common / (area[0] + area - common) <= 0.45
            keep[0] = False
            rest, score = rest[keep], score[keep]
    found = torch.stack(rows)
    return found[found[:, 2].argsort(descending=True)[:200]]


def _priors() -> Tensor:
    places = (torch.arange(38) + 0.5) * 300 / 38
    y, x = torch.meshgrid(places, places, indexing="ij")
    centre, half = torch.stack([x, y], -1)[:, :, None], torch.tensor(SIZES) / 2
    boxes = torch.cat([centre - half, centre + half], -1) / 300
    return torch.stack([boxes.flatten(), torch.tensor(VARIANCE).repeat(boxes.numel() // 4)])[None]


def _proposals(scores: Tensor, deltas: Tensor, anchors: Tensor) -> Tensor:
    """Proposal as one would compose it, a kept box at a time: 300 boxes of a picture of 600 x 1000."""
    height, width = scores.shape[1:]
    y, x = torch.meshgrid(torch.arange(height) * 16.0, torch.arange(width) * 16.0, indexing="ij")
    boxes = (torch.stack([x, y, x, y], -1)[:, :, None] + anchors).reshape(-1, 4)
    move, growth = deltas.reshape(9, 4, height, width).permute(2, 3, 0, 1).reshape(-1, 4).split(2, 1)
    size = boxes[:, 2:] - boxes[:, :2] + 1
    centre, size = boxes[:, :2] + size / 2 + move * size, growth.exp() * size
    limit = torch.tensor([999.0, 599.0])
    low, high = ((centre + size * side).clamp(min=0).minimum(limit) for side in (-0.5, 0.5))
    score = torch.where((high - low + 1 < 16).any(1), 0.0, scores.permute(1, 2, 0).flatten())
    rest = torch.cat([low, high], 1)[score.argsort(descending=True, stable=True)[:6000]]
    rows: list[Tensor] = []
    while len(rest) and len(rows) < 300:
        rows.append(rest[0])
        inner = torch.minimum(rest[:1, 2:], rest[:, 2:]) - torch.maximum(rest[:1, :2], rest[:, :2]) + 1
        common, area = inner.clamp(min=0).prod(1), (rest[:, 2:] - rest[:, :2] + 1).prod(1)
        keep = common / (area[0] + area - common) <= 0.7
        keep[0] = False
        rest = rest[keep]
    return torch.stack(rows)


def _roi_pool(features: Tensor, rois: Tensor) -> Tensor:
    """Region by region, each with torch's adaptive pooling, whose bins are Caffe's."""
    pooled = []
    for image, x1, y1, x2, y2 in (rois * torch.tensor([16.0, 1, 1, 1, 1]) / 16).round().long().tolist():
        region = features[image, :, y1 : max(y2, y1) + 1, x1 : max(x2, x1) + 1]
        pooled.append(F.adaptive_max_pool2d(region, 7))
    return torch.stack(pooled)


def _pyramid(x: Tensor) -> Tensor:
    return torch.cat([F.adaptive_max_pool2d(x, bins).flatten(1) for bins in (1, 2, 4)], 1)


def best(ours: Call, stock: Call, runs: int = 15) -> tuple[float, float]:
    times = [float("inf")] * 2
    for _ in range(runs):
        for i, call in enumerate((ours, stock)):
            start = time.perf_counter()
            call()
            times[i] = min(times[i], time.perf_counter() - start)
    return times[0], times[1]


def main() -> None:
    torch.set_num_threads(1)
    with torch.inference_mode():
        for name, (ours, stock) in cases().items():
            a, b = best(ours, stock)
            print(f"{name:32} {1000 * a:8.2f} ms {1000 * b:8.2f} ms   {a / b:.2f}")


if __name__ == "__main__":
    main()
