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
    flat = [x.reshape(-1) for x in (ref, y64, c32, d32)]
    for start in range(0, flat[0].numel(), BLOCK):
        sums.add(start, *(x[start : start + BLOCK] for x in flat))
    n = max(sums.finite, 1)

    def rms(square: float) -> float:
        return math.sqrt(square / n)

    noise = max(rms(sums.yard2), relative * rms(sums.y2), floor, SMALLEST)
    noise_max = max(sums.yard_max, 2 * relative * sums.y_max, floor, SMALLEST)
    return Judgement(
        reference=rms(sums.ref2) / noise,
        device=rms(sums.device2) / noise,
        reference_max=sums.ref_max / noise_max,
        device_max=sums.device_max / noise_max,
        noise=noise,
        noise_max=noise_max,
        equal=sums.equal,
        strange=sums.strange,
        relative_l2=math.sqrt(sums.error2 / sums.r2) if sums.r2 else (0.0 if not sums.error2 else math.inf),
        cosine=_cosine(sums.r2, sums.d2, sums.error2),
        largest_error=sums.error_max,
        at=_index(sums.error_at, shape),
        ulp=sums.ulp,
        ours=_moments(sums.d1, sums.d2, sums.d_low, sums.d_high, sums.d_nan, sums.d_inf, n if sums.finite else 0),
        theirs=_moments(sums.r1, sums.r2, sums.r_low, sums.r_high, sums.r_nan, sums.r_inf, n if sums.finite else 0),
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


def _moments(total: float, square: float, low: float, high: float, nan: int, inf: int, n: int) -> Moments:
    if not n:
        return Moments(0.0, 0.0, 0.0, 0.0, nan, inf)
    mean = total / n
    return Moments(mean, math.sqrt(max(square / n - mean * mean, 0.0)), low, high, nan, inf)


class _Sums:
    """Running sums over blocks; the finite values only, except where a name says otherwise."""

    def __init__(self) -> None:
        self.finite = self.strange = self.error_at = 0
        self.equal = True
        self.ulp = 0.0
        self.yard2 = self.ref2 = self.device2 = self.error2 = self.y2 = 0.0
        self.yard_max = self.ref_max = self.device_max = self.y_max = self.error_max = 0.0
        self.r1 = self.r2 = self.d1 = self.d2 = 0.0
        self.r_low = self.d_low = math.inf
        self.r_high = self.d_high = -math.inf
        self.r_nan = self.r_inf = self.d_nan = self.d_inf = 0

    def add(self, start: int, r: Tensor, y64: Tensor, c: Tensor, d: Tensor) -> None:
        """Take in one block; `start`: index of its first element. Only y64 is float64: the differences, once taken,
        are as exact in float32, which takes half the time.
        """
        yard, error = _differences(r, y64, c, d)
        yard_max, error_max, (low, high) = _largest(yard), _largest(error), _ends(d)
        if not math.isfinite(yard_max + error_max + low + high):
            self._add_finite(start, r, y64, c, d)
            return
        self.finite += d.numel()
        d_max, yard2 = max(-low, high), _square(yard, yard_max)
        d1, d2 = float(d.sum()), _square(d, d_max)
        self.d1, self.d2, self.d_low, self.d_high = (
            self.d1 + d1,
            self.d2 + d2,
            min(self.d_low, low),
            max(self.d_high, high),
        )
        self.yard2, self.yard_max = self.yard2 + yard2, max(self.yard_max, yard_max)
        if c is d:
            device, device2, device_max, c2, c_max = yard, yard2, yard_max, d2, d_max
        else:
            device = (d - y64).float()
            device_max = _largest(device)
            c_max = _largest(c)
            device2, c2 = _square(device, device_max), _square(c, c_max)
        self.y2, self.y_max = self.y2 + c2, max(self.y_max, c_max)
        self.device2, self.device_max = self.device2 + device2, max(self.device_max, device_max)
        if error_max:
            reference, (low, high) = device - error, _ends(r)
            ref_max = _largest(reference)
            ref2, r1, r2 = _square(reference, ref_max), float(r.sum()), _square(r, max(-low, high))
            self._add_error(start, r, error, error_max, math.sqrt(r2 / r.numel()))
        else:  # the reference has the very numbers of ours
            ref2, ref_max, r1, r2 = device2, device_max, d1, d2
        self.ref2, self.ref_max = self.ref2 + ref2, max(self.ref_max, ref_max)
        self.r1, self.r2, self.r_low, self.r_high = (
            self.r1 + r1,
            self.r2 + r2,
            min(self.r_low, low),
            max(self.r_high, high),
        )

    def _add_error(self, start: int, r: Tensor, error: Tensor, error_max: float, scale: float) -> None:
        """error: d - ref; error_max: the largest |error|; scale: rms(ref) of the block."""
        self.equal = False
        self.error2 += _square(error, error_max)
        size = error.abs_()
        if error_max > self.error_max:
            self.error_max, self.error_at = error_max, start + int(size.numpy().argmax())
        # 2^23 steps of float32: without its sign and its fraction a number is a power of two.
        steps = (r.view(torch.int32) & 0x7F800000).view(torch.float32)
        least = max(math.ldexp(0.5, math.frexp(scale)[1]), LEAST_NORMAL)
        self.ulp = max(self.ulp, _ends(size.div_(steps.clamp_(min=least)))[1] * 2.0**23)

    def _add_finite(self, start: int, r: Tensor, y64: Tensor, c: Tensor, d: Tensor) -> None:
        """A block with NaN or Inf: counts them, and the places where the reference differs from all of ours."""
        y = y64.float()  # what float32 makes of it: a value beyond its range is Inf
        yard, error = _differences(r, y64, c, d)
        keep = torch.isfinite(yard) & torch.isfinite(error) & torch.isfinite(y) & torch.isfinite(d)
        # Intermediate values may overflow in float32 and not in float64: either of ours may agree.
        agrees = (_same(r, y) | _same(r, c)) & (_same(d, y) | _same(d, c) | _same(d, r))
        self.equal &= bool(_same(r, d).all())
        self.strange += int((~keep & ~agrees).sum())
        self.r_nan, self.r_inf = self.r_nan + int(r.isnan().sum()), self.r_inf + int(r.isinf().sum())
        self.d_nan, self.d_inf = self.d_nan + int(d.isnan().sum()), self.d_inf + int(d.isinf().sum())
        if keep.any():
            kept = d[keep]
            self.add(start, r[keep], y64[keep], kept if c is d else c[keep], kept)


def _differences(r: Tensor, y64: Tensor, c: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """c - y64, and d - r, in float32."""
    return (c.double() - y64).float(), d - r


def _square(x: Tensor, largest: float) -> float:
    """Sum of squares of float32; those that would leave its range are taken in float64."""
    x = x if 1e-12 < largest < 1e15 else x.double()
    return float(x.dot(x))


def _same(a: Tensor, b: Tensor) -> Tensor:
    return (a == b) | (a.isnan() & b.isnan())
