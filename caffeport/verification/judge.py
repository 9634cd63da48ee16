"""How far two arrays are apart, counted in what float32 can give for this layer on this data.

Four arrays of one shape: `ref` is the reference's, `y64` ours in float64, `c32` ours in float32 on one thread of a CPU
(the yardstick; computed as Caffe does where that errs more than torch), `d32` ours on the device and in the precision
under test. With rms over the elements

    noise     = max(rms(c32 - y64), 2^-25 rms(y64), the layer's own floor)
    reference = rms(ref - y64) / noise        do we mean what Caffe means?
    device    = rms(d32 - y64) / noise        does this device compute it well enough?

and the same with the largest magnitude and 2^-24. Passed where both are at most 16, by the largest both at most 32.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

SAMPLED = 1 << 12  # values that tell how the error grows from layer to layer
BLOCK = 1 << 17  # elements judged at a time, so that all intermediate arrays stay in the cache
CLOSELY = BLOCK // 8  # of which so many at least are compared in float64
SMALLEST = 2.0**-149  # of float32
LEAST_NORMAL = 2.0**-126
HALF_STEP = 2.0**-25  # a rounding error of float32, as a share of the value


@dataclass(frozen=True)
class Limits:
    """Largest ratios that pass: of the root mean squares, and of the largest errors."""

    rms: float = 16.0
    largest: float = 32.0


@dataclass(frozen=True)
class Moments:
    """What an array's finite values are like, and how many are not finite."""

    mean: float
    sd: float
    low: float
    high: float
    nan: int
    inf: int


@dataclass(frozen=True)
class Judgement:
    """One array of ours beside the reference's.

    reference, device          ratios of root mean squares to the noise (see the module)
    reference_max, device_max  the same of the largest errors
    noise, noise_max           what they are divided by, in the array's own unit
    equal                      d32 and ref agree bit for bit (-0 and 0, and all NaN, count as equal)
    strange                    places where one is NaN or Inf and the other is not that same
    relative_l2, cosine        of d32 and ref; rms(d32 - ref) / rms(ref)
    largest_error, at          max |d32 - ref| and its index
    ulp                        largest |d32 - ref| in steps of float32 at ref, or at rms(ref) where that is larger, of
                               the largest errors and the values compared in float64
    ours, theirs               moments of d32 and of ref
    """

    reference: float
    device: float
    reference_max: float
    device_max: float
    noise: float
    noise_max: float
    equal: bool
    strange: int
    relative_l2: float
    cosine: float
    largest_error: float
    at: tuple[int, ...]
    ulp: float
    ours: Moments
    theirs: Moments

    @property
    def ratio(self) -> float:
        return max(self.reference, self.device)

    @property
    def ratio_max(self) -> float:
        return max(self.reference_max, self.device_max)

    @property
    def bits(self) -> float:
        """Bits of precision that d32 and ref share, of float32's 24."""
        return 24.0 if self.relative_l2 <= 0 else min(max(-math.log2(self.relative_l2), 0.0), 24.0)

    def within(self, limits: Limits) -> bool:
        return not self.strange and self.ratio <= limits.rms and self.ratio_max <= limits.largest


@dataclass(frozen=True)
class Growth:
    """The reference beside the whole net run from its inputs: ratios as in Judgement, `noise` and `error`
    relative to rms(y64).
    """

    ratio: float
    ratio_max: float
    noise: float
    error: float

    def within(self, limits: Limits) -> bool:
        return self.ratio <= limits.rms and self.ratio_max <= limits.largest


def judge(
    ref: Tensor, y64: Tensor, c32: Tensor, d32: Tensor, floor: float = 0.0, relative: float = HALF_STEP
) -> Judgement:
    """Compare arrays of one shape, all on the CPU.

    floor     an absolute difference that counts as noise
    relative  the same as a share of rms(y64)
    """
    shape = tuple(ref.shape)
    sums = _Sums()
    r, y, c, d = (x.reshape(-1) for x in (ref, y64, c32, d32))
    for start in range(0, r.numel(), BLOCK):
        part = slice(start, start + BLOCK)
        tested = d[part]
        sums.add(start, r[part], y[part], tested if c32 is d32 else c[part], tested)
    error, ours, theirs, yardstick = sums.error, sums.ours, sums.theirs, sums.yardstick
    noise = max(sums.yard.rms, relative * yardstick.rms, floor, SMALLEST)
    noise_max = max(sums.yard.largest, 2 * relative * yardstick.largest, floor, SMALLEST)
    relative_l2 = error.rms / theirs.rms if theirs.square else (0.0 if not error.square else math.inf)
    return Judgement(
        reference=sums.reference.rms / noise,
        device=sums.device.rms / noise,
        reference_max=sums.reference.largest / noise_max,
        device_max=sums.device.largest / noise_max,
        noise=noise,
        noise_max=noise_max,
        equal=sums.equal,
        strange=sums.strange,
        relative_l2=relative_l2,
        cosine=_cosine(theirs.square, ours.square, error.square),
        largest_error=error.largest,
        at=_index(sums.error_at, shape),
        ulp=sums.ulp,
        ours=ours.moments,
        theirs=theirs.moments,
    )


def growth(ref: Tensor, y64: Tensor, c32: Tensor, floor: float = 0.0, relative: float = HALF_STEP) -> Growth:
    """The end-to-end ratios, of finite values; arguments as in `judge`. Looks at SAMPLED evenly spread values of
    a large array.
    """
    # An odd step meets every column of a map, whose width is even more often than not.
    thin = ref.numel() // SAMPLED | 1
    r, y, c = (x.reshape(-1)[::thin].double().numpy() for x in (ref, y64, c32))
    error, yard = r - y, c - y
    if not math.isfinite(error.sum() + yard.sum()):
        keep = np.isfinite(error) & np.isfinite(yard)
        error, yard, y = error[keep], yard[keep], y[keep]
    if not y.size:
        return Growth(0.0, 0.0, 0.0, 0.0)
    (error_rms, error_max), (yard_rms, yard_max), (scale, y_max) = (
        (math.sqrt(x.dot(x) / x.size), max(-float(x.min()), float(x.max()))) for x in (error, yard, y)
    )
    noise = max(yard_rms, relative * scale, floor, SMALLEST)
    noise_max = max(yard_max, 2 * relative * y_max, floor, SMALLEST)
    return Growth(error_rms / noise, error_max / noise_max, noise / (scale or 1.0), error_rms / (scale or 1.0))


def _ends(x: Tensor) -> tuple[float, float]:
    """Least and largest of a tensor on the CPU; NumPy finds them several times as fast as torch."""
    values = x.numpy()
    return float(values.min()), float(values.max())


def _cosine(a2: float, b2: float, error2: float) -> float:
    """Of the angle between a and b, from |a|^2, |b|^2 and |a - b|^2; 1 where both are 0."""
    if not a2 or not b2:
        return float(a2 == b2)
    return min(1.0, (a2 + b2 - error2) / (2 * math.sqrt(a2) * math.sqrt(b2)))


def _index(flat: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    index = []
    for size in reversed(shape):
        index.append(flat % size if size else 0)
        flat //= size or 1
    return tuple(reversed(index))


@dataclass
class _Errors:
    """Differences, summed up block by block. NaN and Inf show in `largest`."""

    n: int = 0
    square: float = 0.0
    largest: float = 0.0

    @classmethod
    def of(cls, x: Tensor) -> "_Errors":
        low, high = _ends(x)
        return cls(x.numel(), _square(x, max(-low, high)), max(-low, high))

    def add(self, block: "_Errors") -> None:
        self.n, self.square = self.n + block.n, self.square + block.square
        self.largest = max(self.largest, block.largest)

    @property
    def rms(self) -> float:
        return math.sqrt(self.square / max(self.n, 1))


@dataclass
class _Values(_Errors):
    """Values, summed up block by block."""

    total: float = 0.0
    low: float = math.inf
    high: float = -math.inf
    nan: int = 0
    inf: int = 0

    @classmethod
    def of(cls, x: Tensor) -> "_Values":
        low, high = _ends(x)
        largest = max(-low, high)
        return cls(x.numel(), _square(x, largest), largest, float(x.sum()), low, high)

    def add(self, block: "_Errors") -> None:
        super().add(block)
        if isinstance(block, _Values):
            self.total += block.total
            self.low, self.high = min(self.low, block.low), max(self.high, block.high)

    @property
    def moments(self) -> Moments:
        if not self.n:
            return Moments(0.0, 0.0, 0.0, 0.0, self.nan, self.inf)
        mean = self.total / self.n
        variance = max(self.square / self.n - mean * mean, 0.0)
        return Moments(mean, math.sqrt(variance), self.low, self.high, self.nan, self.inf)


class _Sums:
    """What four arrays show, block by block; of the finite values only, except where a name says otherwise.

    All of d - ref is looked at. A float64 difference costs several times as much, so it is taken for the first CLOSELY
    elements of a block, and for all where d - ref is more than four times the noise of those: what is passed over
    differs by no more than five times the noise, unless d and ref err alike.
    """

    def __init__(self) -> None:
        self.ours, self.theirs, self.yardstick = _Values(), _Values(), _Values()
        self.yard, self.reference, self.device, self.error = _Errors(), _Errors(), _Errors(), _Errors()
        self.equal = True
        self.strange = self.error_at = 0
        self.ulp = 0.0

    def add(self, start: int, r: Tensor, y64: Tensor, c: Tensor, d: Tensor) -> None:
        """Take in one block; `start`: index of its first element. Only y64 is float64: the differences, once taken,
        are as exact in float32, which takes half the time.
        """
        error = d - r  # brings both into the cache
        c = d if c is d or torch.equal(c, d) else c
        errors, ours = _Errors.of(error), _Values.of(d)
        theirs = _Values.of(r) if errors.largest else ours
        yardstick = ours if c is d else _Values.of(c)
        closely = CLOSELY
        yard = c[:closely].double().sub_(y64[:closely]).float()
        near = _Errors.of(yard)
        if not (errors.largest <= 4 * near.largest and errors.square / errors.n <= 16 * near.square / near.n):
            closely = BLOCK
            yard = c.double().sub_(y64).float()
            near = _Errors.of(yard)
        if not math.isfinite(errors.largest + theirs.largest + ours.largest + yardstick.largest + near.largest):
            self._add_finite(start, r, y64, c, d)
            return
        device = yard if c is d else d[:closely].double().sub_(y64[:closely]).float()
        self.yard.add(near)
        self.device.add(near if c is d else _Errors.of(device))
        self.reference.add(_Errors.of(device - error[:closely]))
        self.ours.add(ours)
        self.theirs.add(theirs)
        self.yardstick.add(yardstick)
        if errors.largest:
            self._add_error(start, r, error, errors.largest, closely)
        self.error.add(errors)

    def _add_error(self, start: int, r: Tensor, error: Tensor, error_max: float, closely: int) -> None:
        """error: d - ref; error_max: the largest |error|."""
        self.equal = False
        at = int(error.numpy().argmax())
        at = at if float(error[at]) == error_max else int(error.numpy().argmin())
        if error_max > self.error.largest:
            self.error_at = start + at
        # 2^23 steps of float32: without its sign and its fraction a number is a power of two.
        least = max(math.ldexp(0.5, math.frexp(self.theirs.rms)[1]), LEAST_NORMAL)
        if error_max / least * 2.0**23 > self.ulp:
            size = max(math.ldexp(0.5, math.frexp(float(r[at]))[1]) if r[at] else 0.0, least)
            steps = (r.numpy()[:closely].view(np.int32) & 0x7F800000).view(np.float32)
            near = (np.abs(error.numpy()[:closely]) / np.maximum(steps, least, out=steps)).max()
            self.ulp = max(self.ulp, float(near) * 2.0**23, error_max / size * 2.0**23)

    def _add_finite(self, start: int, r: Tensor, y64: Tensor, c: Tensor, d: Tensor) -> None:
        """A block with NaN or Inf: counts them, and the places where the reference differs from all of ours."""
        y = y64.float()  # what float32 makes of it: a value beyond its range is Inf
        keep = (
            torch.isfinite(d - r) & torch.isfinite((c.double() - y64).float()) & torch.isfinite(y) & torch.isfinite(d)
        )
        # Intermediate values may overflow in float32 and not in float64: either of ours may agree.
        agrees = (_same(r, y) | _same(r, c)) & (_same(d, y) | _same(d, c) | _same(d, r))
        self.equal &= bool(_same(r, d).all())
        self.strange += int((~keep & ~agrees).sum())
        for side, x in ((self.theirs, r), (self.ours, d)):
            side.nan, side.inf = side.nan + int(x.isnan().sum()), side.inf + int(x.isinf().sum())
        if keep.any():
            kept = d[keep]
            self.add(start, r[keep], y64[keep], kept if c is d else c[keep], kept)


def _same(a: Tensor, b: Tensor) -> Tensor:
    return (a == b) | (a.isnan() & b.isnan())


def _square(x: Tensor, largest: float) -> float:
    """Sum of squares of float32; those that would leave its range are taken in float64."""
    if not largest:
        return 0.0
    x = x if 1e-12 < largest < 1e15 else x.double()
    return float(x.dot(x))
