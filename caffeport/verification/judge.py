"""How far two arrays are apart, counted in what float32 can give for this layer on this data.

Four arrays of one shape: `ref` is the reference's, `y64` ours in float64, `c32` ours in float32 on one thread of a CPU
(the yardstick), `d32` ours on the device and in the precision under test. With rms over the elements

    noise     = max(rms(c32 - y64), 2^-25 rms(y64), the layer's own floor)
    reference = rms(ref - y64) / noise        do we mean what Caffe means?
    device    = rms(d32 - y64) / noise        does this device compute it well enough?

and the same with the largest magnitude and 2^-24. Passed where both are at most 16, by the largest both at most 32.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

SAMPLED = 1 << 14  # values that tell how the error grows from layer to layer
BLOCK = 1 << 16  # elements judged at a time, so that all intermediate arrays stay in the cache
EVERY = 4  # blocks, of which one at least is compared in float64
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
    ulp                        largest |d32 - ref| in steps of float32 at ref, or at rms(ref) where that is larger
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
        return 24.0 if self.relative_l2 == 0 else min(max(-math.log2(self.relative_l2), 0.0), 24.0)

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
    yard, reference, device, ours, theirs = sums.yard, sums.reference, sums.device, sums.ours, sums.theirs
    noise = max(yard.rms, relative * sums.yardstick.rms, floor, SMALLEST)
    noise_max = max(yard.largest, 2 * relative * sums.yardstick.largest, floor, SMALLEST)
    relative_l2 = sums.error.rms / theirs.rms if theirs.square else (0.0 if not sums.error.square else math.inf)
    return Judgement(
        reference=reference.rms / noise,
        device=device.rms / noise,
        reference_max=reference.largest / noise_max,
        device_max=device.largest / noise_max,
        noise=noise,
        noise_max=noise_max,
        equal=sums.equal,
        strange=sums.strange,
        relative_l2=relative_l2,
        cosine=_cosine(theirs.square, ours.square, sums.error.square),
        largest_error=sums.error.largest,
        at=_index(sums.error_at, shape),
        ulp=sums.ulp,
        ours=ours.moments,
        theirs=theirs.moments,
    )


def growth(ref: Tensor, y64: Tensor, c32: Tensor, floor: float = 0.0, relative: float = HALF_STEP) -> Growth:
    """The end-to-end ratios, of finite values; arguments as in `judge`. Looks at SAMPLED evenly spread values of
    a large array.
    """
    thin = max(ref.numel() // SAMPLED, 1)
    error2 = yard2 = y2 = error_max = yard_max = y_max = 0.0
    n = 0
    flat = [x.reshape(-1)[::thin] for x in (ref, y64, c32)]
    for start in range(0, flat[0].numel(), BLOCK):
        r, y, c = (x[start : start + BLOCK].double() for x in flat)
        error, yard = r - y, c - y
        if not math.isfinite(float(error.sum() + yard.sum())):
            keep = torch.isfinite(error) & torch.isfinite(yard)
            error, yard, y = error[keep], yard[keep], y[keep]
        n += y.numel()
        error2, yard2, y2 = error2 + float(error.dot(error)), yard2 + float(yard.dot(yard)), y2 + float(y.dot(y))
        error_max, yard_max, y_max = (
            max(a, _largest(b)) for a, b in ((error_max, error), (yard_max, yard), (y_max, y))
        )
    if not n:
        return Growth(0.0, 0.0, 0.0, 0.0)
    error_rms, yard_rms, scale = (math.sqrt(square / n) for square in (error2, yard2, y2))
    noise = max(yard_rms, relative * scale, floor, SMALLEST)
    noise_max = max(yard_max, 2 * relative * y_max, floor, SMALLEST)
    return Growth(error_rms / noise, error_max / noise_max, noise / (scale or 1.0), error_rms / (scale or 1.0))


def _ends(x: Tensor) -> tuple[float, float]:
    """Least and largest of a tensor on the CPU; NumPy finds them several times as fast as torch."""
    values = x.numpy()
    return float(values.min()), float(values.max())


def _largest(x: Tensor) -> float:
    """max |x|."""
    if not x.numel():
        return 0.0
    low, high = _ends(x)
    return max(-low, high)


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
class _Running:
    """Values of float32 that were taken in block by block."""

    n: int = 0
    total: float = 0.0
    square: float = 0.0
    low: float = math.inf
    high: float = -math.inf
    nan: int = 0
    inf: int = 0

    def add(self, x: Tensor, low: float, high: float) -> None:
        """low, high: the ends of x."""
        self.n += x.numel()
        self.total += float(x.sum())
        self.square += _square(x, max(-low, high))
        self.low, self.high = min(self.low, low), max(self.high, high)

    @property
    def largest(self) -> float:
        return max(abs(self.low), abs(self.high)) if self.n else 0.0

    @property
    def rms(self) -> float:
        return math.sqrt(self.square / max(self.n, 1))

    @property
    def moments(self) -> Moments:
        if not self.n:
            return Moments(0.0, 0.0, 0.0, 0.0, self.nan, self.inf)
        mean = self.total / self.n
        variance = max(self.square / self.n - mean * mean, 0.0)
        return Moments(mean, math.sqrt(variance), self.low, self.high, self.nan, self.inf)


class _Sums:
    """What four arrays show, block by block; of the finite values only, except where a name says otherwise.

    Every block's d - ref is looked at. A float64 difference costs several times as much, so where c32 is d32 it is
    taken for every EVERYth block, and for each block whose d - ref is larger than the noise of those seen: what is
    passed over cannot differ by more than three times the noise.
    """

    def __init__(self) -> None:
        self.ours, self.theirs, self.yardstick = _Running(), _Running(), _Running()
        self.yard, self.reference, self.device, self.error = _Running(), _Running(), _Running(), _Running()
        self.equal = True
        self.strange = self.error_at = 0
        self.ulp = 0.0

    def add(self, start: int, r: Tensor, y64: Tensor, c: Tensor, d: Tensor) -> None:
        """Take in one block; `start`: index of its first element. Only y64 is float64: the differences, once taken,
        are as exact in float32, which takes half the time.
        """
        error = d - r
        ends, error_ends = _ends(d), _ends(error)
        if not math.isfinite(sum(ends) + sum(error_ends)):
            self._add_finite(start, r, y64, c, d)
            return
        error_max = max(-error_ends[0], error_ends[1])
        if start // BLOCK % EVERY == 0 or c is not d or self._unusual(error, error_max):
            yard = (c.double() - y64).float()
            yard_ends = _ends(yard)
            if not math.isfinite(sum(yard_ends)):
                self._add_finite(start, r, y64, c, d)
                return
            self.yard.add(yard, *yard_ends)
            device = yard if c is d else (d - y64).float()
            self.device.add(device, *(yard_ends if c is d else _ends(device)))
            reference = device - error
            self.reference.add(reference, *_ends(reference))
        self.ours.add(d, *ends)
        self.theirs.add(r, *(ends if not error_max else _ends(r)))
        self.yardstick.add(c, *(ends if c is d else _ends(c)))
        if error_max:
            self._add_error(start, r, error, error_max)
        self.error.add(error, *error_ends)

    def _unusual(self, error: Tensor, error_max: float) -> bool:
        return error_max > 2 * self.yard.largest or _square(error, error_max) > 4 * self.yard.rms**2 * error.numel()

    def _add_error(self, start: int, r: Tensor, error: Tensor, error_max: float) -> None:
        """error: d - ref; error_max: the largest |error|."""
        self.equal = False
        size = error.abs()
        if error_max > self.error.largest:
            self.error_at = start + int(size.numpy().argmax())
        # 2^23 steps of float32: without its sign and its fraction a number is a power of two.
        least = max(math.ldexp(0.5, math.frexp(self.theirs.rms)[1]), LEAST_NORMAL)
        if error_max / least * 2.0**23 > self.ulp:
            steps = (r.view(torch.int32) & 0x7F800000).view(torch.float32)
            self.ulp = max(self.ulp, _ends(size.div_(steps.clamp_(min=least)))[1] * 2.0**23)

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
    x = x if 1e-12 < largest < 1e15 else x.double()
    return float(x.dot(x))
