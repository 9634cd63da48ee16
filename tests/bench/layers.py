"""Our own modules against the nearest stock PyTorch composition: `python tests/bench/layers.py`.

One line a case: milliseconds of ours, of the composition, and the ratio of the best of alternating runs on one thread.
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from caffeport.modules.convolution import Im2col
from caffeport.modules.normalization import MVN, LocalResponseNorm, WithinChannelLRN
from caffeport.modules.pooling import MaxPoolMask, Pool, SpatialPyramid
from caffeport.modules.recurrent import LSTM, RNN

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
        "Im2col": (lambda: columns(x), lambda: F.unfold(x, 3, padding=1)),
        "LSTM, no restart": (lambda: lstm(sequence, going), lambda: stock_lstm(sequence)),
        "LSTM, restarts": (lambda: lstm(sequence, stopping), lambda: stock_lstm(sequence)),
        "RNN": (lambda: rnn(sequence, going), lambda: torch.tanh(out(stock_rnn(sequence)[0]))),
    }


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
