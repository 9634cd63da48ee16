"""Our own modules against the nearest stock PyTorch composition: `python tests/bench/layers.py`.

One line a case: milliseconds of ours, of the composition, and the ratio of the best of alternating runs on one thread.
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from caffeport.modules.convolution import Im2col
from caffeport.modules.detection import DetectionOutput
from caffeport.modules.normalization import MVN, LocalResponseNorm, WithinChannelLRN
from caffeport.modules.pooling import MaxPoolMask, Pool, SpatialPyramid
from caffeport.modules.rcnn import ROIPool
from caffeport.modules.recurrent import LSTM, RNN
from caffeport.modules.segmentation import Interp

Call = Callable[[], object]


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
