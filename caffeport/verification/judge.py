"""How far two arrays are apart, counted in what float32 can give for this layer on this data.

Four arrays of one shape: `ref` is the reference's, `y64` ours in float64, `c32` ours in float32 on one thread of a CPU
(the yardstick; computed as Caffe does where that errs more than torch), `d32` ours on the device and in the precision
under test. With rms over the elements

    noise     = max(rms(c32 - y64), 2^-25 rms(y64), the layer's own floor)
    reference = rms(ref - y64) / noise        do we mean what Caffe means?
    device    = rms(d32 - y64) / noise        does this device compute it well enough?

and the same with the largest magnitude and 2^-24. Passed where both are at most 16, by the largest both at most 32.
d32 - ref is taken of all elements; y64 and c32 of some or none, where the verdict of all is certain from those.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..layers.base import Array

SAMPLED = 1 << 11  # values that tell how the error grows from layer to layer
LINE = 16  # of them lie side by side, as memory is read
BLOCK = 1 << 18  # elements judged at a time, so that all intermediate arrays stay in the cache
SHARE = 8  # one value in so many is compared in float64 where ours and the reference's are close
CHUNK = 1 << 8  # of them lie side by side
CLOSE = 4.0  # a ratio up to which some values stand for all
SURE = 12.0  # a ratio that passes whatever is added for what c32 and d32 err by
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
    noise, noise_max           what they are divided by, in the array's own unit, of all values or of some
    equal                      d32 and ref agree bit for bit (-0 and 0, and all NaN, count as equal)
    strange                    places where one is NaN or Inf and the other is not that same
    relative_l2, cosine        of d32 and ref; rms(d32 - ref) / rms(ref)
    bound                      the ratios are upper bounds, for the least noise that there can be: d32 - ref is so
                               small that they are certain to pass
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
    bound: bool = False

    @property
    def ratio(self) -> float:
        return max(self.reference, self.device)

    @property
    def ratio_max(self) -> float:
        return max(self.reference_max, self.device_max)

    @property
    def sign(self) -> str:
        """Before the ratios, where they are shown."""
        return "≤" if self.bound else ""

    @property
    def badness(self) -> float:
        """By which the worst layers are chosen; a bound is 1 above what d32 - ref is by itself."""
        excess = 1.0 if self.bound else 0.0
        return math.inf if self.strange else max(self.ratio - excess, (self.ratio_max - excess) / 2)

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
    ref: Tensor,
    y64: Tensor,
    c32: Tensor,
    d32: Tensor,
    floor: float = 0.0,
    relative: float = HALF_STEP,
    close: float = CLOSE,
) -> Judgement:
    """Compare arrays of one shape, all on the CPU.

    floor     an absolute difference that counts as noise
    relative  the same as a share of rms(y64)
    close     a ratio up to which not all values have to be compared
    """

    def some() -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if y64 is d32:  # of a layer that only moves values, so that d32 - ref has told all
            none = d32.new_empty(0)
            return none, none, none, none
        r, y, c, d = (torch.from_numpy(_spread(x.numpy(), CHUNK, SHARE)) for x in (ref, y64, c32, d32))
        return r, y, c, c if d32 is c32 else d

    return judge_by_some(ref, d32, some, lambda: (y64, c32), floor, relative, close)


def judge_by_some(
    ref: Tensor,
    d32: Tensor,
    some: Callable[[], tuple[Tensor, Tensor, Tensor, Tensor]],
    whole: Callable[[], tuple[Tensor, Tensor]],
    floor: float = 0.0,
    relative: float = HALF_STEP,
    close: float = CLOSE,
    same: bool = False,
) -> Judgement:
    """As `judge`, where y64 and c32 are known of some of the values only.

    All of d32 - ref is looked at. Where that is small (`_Sums.settled`), the ratios are those of some values, and what
    d32 - ref has more elsewhere is added; an error that d32 and ref share there is not seen. Where it is not small, all
    values are compared.

    some   gives the same values of ref, y64, c32 and d32
    whole  gives y64 and c32
    same   c32 is d32, so that d32 errs by the noise at most: with d32 - ref of a few times the least noise there can be
           nothing else is computed
    """
    r, d = ref.reshape(-1), d32.reshape(-1)
    sums = _Sums(r.numel())
    finite = all(
        sums.add(start, r[start : start + BLOCK], d[start : start + BLOCK]) for start in range(0, r.numel(), BLOCK)
    )
    reference, reference_max = (1 + ratio for ratio in sums.bounds(floor, relative))
    bound = finite and same and max(reference, reference_max) <= close
    if not bound and not (
        finite and sums.add_closely(*(x.reshape(-1) for x in some())) and sums.settled(floor, relative, close)
    ):
        sums = _Sums(r.numel())
        y, c = (x.reshape(-1) for x in whole())
        for start in range(0, r.numel(), BLOCK):
            sums.add_all(start, *(x[start : start + BLOCK] for x in (r, y, c, d)))
    noise, noise_max = sums.noise(floor, relative)
    error, ours, theirs = sums.error, sums.ours, sums.theirs
    at, steps = sums.at_worst()
    device = device_max = 1.0
    if not bound:
        device, device_max = sums.device.rms / noise, sums.device.largest / noise_max
        reference = math.sqrt(sums.reference.rms**2 + max(error.rms**2 - sums.near.rms**2, 0.0)) / noise
        reference_max = max(sums.reference.largest, error.largest - sums.device.largest) / noise_max
    return Judgement(
        reference=reference,
        device=device,
        reference_max=reference_max,
        device_max=device_max,
        noise=noise,
        noise_max=noise_max,
        equal=sums.equal,
        strange=sums.strange,
        relative_l2=error.rms / theirs.rms if theirs.square else (0.0 if not error.square else math.inf),
        cosine=_cosine(theirs.square, ours.square, error.square),
        largest_error=error.largest,
        at=_index(at, tuple(ref.shape)),
        ulp=max(sums.ulp, steps),
        ours=ours.moments,
        theirs=theirs.moments,
        bound=bound,
    )


def _spread(x: Array, width: int, step: int) -> Array:
    """Of every `step` runs of `width` values the first; all of an array that is too small for that."""
    flat = x.reshape(-1)
    count = flat.size // (width * step)
    return flat[: count * width * step].reshape(count, -1)[:, :width] if step > 1 and count else flat


def sample(x: Tensor) -> Array:
    """A copy of the values that `growth` looks at: SAMPLED evenly spread ones of a large array."""
    # An odd step meets every column of a map, whose width is even more often than not.
    step = x.numel() // SAMPLED | 1 if x.numel() > 4 * SAMPLED else 1
    return np.array(_spread(x.detach().numpy(), LINE, step)).reshape(-1)


def growth(ref: Array, y64: Array, c32: Array, floor: float = 0.0, relative: float = HALF_STEP) -> Growth:
    """The end-to-end ratios, of the finite values of a `sample`; floor and relative as in `judge`, c32 on any number of
    threads.
    """
    with np.errstate(invalid="ignore"):
        error, yard = ref - y64, c32 - y64
    if not math.isfinite(error.sum() + yard.sum()):
        keep = np.isfinite(error) & np.isfinite(yard)
        error, yard, y64 = error[keep], yard[keep], y64[keep]
    if not len(y64):
        return Growth(0.0, 0.0, 0.0, 0.0)
    # einsum, since dot wakes the BLAS's own threads, which get into the way of torch's.
    e, noise, truth = (
        _Errors(len(x), float(np.einsum("i,i->", x, x)), float(max(x.max(), -x.min()))) for x in (error, yard, y64)
    )
    rms, largest = _noise(noise, truth, floor, relative)
    scale = truth.rms or 1.0
    return Growth(e.rms / rms, e.largest / largest, rms / scale, e.rms / scale)


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


@dataclass(slots=True)
class _Errors:
    """Differences, summed up block by block."""

    n: int = 0
    square: float = 0.0
    largest: float = 0.0

    def take(self, x: Tensor) -> float:
        """Add a block; gives its largest magnitude, in which NaN and Inf show."""
        low, high = _ends(x)
        largest = max(-low, high)
        self.add(x.numel(), _square(x, largest), largest)
        return largest

    def add(self, n: int, square: float, largest: float) -> None:
        self.n, self.square, self.largest = self.n + n, self.square + square, max(self.largest, largest)

    @property
    def rms(self) -> float:
        return math.sqrt(self.square / max(self.n, 1))


@dataclass(slots=True)
class _Values(_Errors):
    """Values, summed up block by block."""

    total: float = 0.0
    low: float = math.inf
    high: float = -math.inf
    nan: int = 0
    inf: int = 0

    def take(self, x: Tensor) -> float:
        low, high = _ends(x)
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.total += float(x.sum())
        largest = max(-low, high)
        self.add(x.numel(), _square(x, largest), largest)
        return largest

    @property
    def moments(self) -> Moments:
        if not self.n:
            return Moments(0.0, 0.0, 0.0, 0.0, self.nan, self.inf)
        mean = self.total / self.n
        variance = max(self.square / self.n - mean * mean, 0.0)
        return Moments(mean, math.sqrt(variance), self.low, self.high, self.nan, self.inf)


def _noise(yard: _Errors, scale: _Errors, floor: float, relative: float) -> tuple[float, float]:
    """By root mean square and by the largest: what c32 errs by, but at least `floor` and the share of the values."""
    rms = max(yard.rms, relative * scale.rms, floor, SMALLEST)
    return rms, max(yard.largest, 2 * relative * scale.largest, floor, SMALLEST)


class _Sums:
    """What four arrays show, of the finite values only, except where a name says otherwise."""

    def __init__(self, size: int) -> None:
        self.ours = self.theirs = _Values()  # one until they differ
        self.error, self.near = _Errors(), _Errors()  # of all, and of those that are compared in float64
        self.yardstick, self.yard, self.reference, self.device = _Errors(), _Errors(), _Errors(), _Errors()
        self.equal = True
        self.strange = 0
        self.ulp = 0.0
        self.worst: tuple[int, float] | None = None  # where the largest error is, and what ref is there
        self.room = torch.empty(min(size, BLOCK), dtype=torch.float32, device="cpu")  # for the errors of a block

    def noise(self, floor: float, relative: float) -> tuple[float, float]:
        """By root mean square and by the largest."""
        return _noise(self.yard, self.yardstick if self.yardstick.n else self.ours, floor, relative)

    def bounds(self, floor: float, relative: float) -> tuple[float, float]:
        """d32 - ref over the least noise there can be."""
        ours, theirs = self.ours, self.theirs
        rms = max(relative * min(ours.rms, theirs.rms), floor, SMALLEST)
        largest = max(2 * relative * min(ours.largest, theirs.largest), floor, SMALLEST)
        return self.error.rms / rms, self.error.largest / largest

    def settled(self, floor: float, relative: float, close: float) -> bool:
        """Whether the values that were not compared in float64 cannot change the verdict.

        The noise of all is at least that of some, diluted by the others, and at least `relative` of all values. By the
        largest it is at least that of some.
        """
        if not self.near.n:
            return self.equal
        noise, noise_max = self.noise(floor, relative)
        diluted = math.sqrt(self.near.n / self.error.n) * self.yard.rms
        least = max(diluted, relative * min(self.ours.rms, self.theirs.rms), floor, SMALLEST)
        return (
            self.error.rms <= min(close * noise, SURE * least)
            and max(self.reference.rms, self.device.rms) <= close * noise
            and max(self.error.largest, self.reference.largest, self.device.largest) <= close * noise_max
            and 4 * self.yardstick.rms >= self.ours.rms  # some that are zero tell nothing of the others
        )

    def add(self, start: int, r: Tensor, d: Tensor) -> bool:
        """Take in one block of ref and d32, the first of whose elements has the index `start`; gives whether all is
        finite.
        """
        difference, before = torch.sub(d, r, out=self.room[: d.numel()]), self.error.largest
        error = self.error.take(difference)
        if error:
            self.equal = False
            self._part()
        largest = self.ours.take(d) + (self.theirs.take(r) if self.theirs is not self.ours else 0.0)
        if error > before:
            at = int(difference.abs_().numpy().argmax())
            self.worst = start + at, float(r[at])
        return math.isfinite(error + largest)

    def _part(self) -> None:
        """From here on ours and theirs differ."""
        if self.theirs is self.ours:
            self.theirs = replace(self.ours)

    def at_worst(self) -> tuple[int, float]:
        """Index of the largest error and how many steps of float32 it is; 0 where there is none."""
        if self.worst is None:
            return 0, 0.0
        at, ref = self.worst
        return at, self.error.largest / self._step(abs(ref)) * 2.0**23

    def add_closely(self, r: Tensor, y64: Tensor, c: Tensor, d: Tensor) -> bool:
        """Take in values that are compared in float64; gives whether all is finite. `add` comes before.

        Only y64 is float64: the differences, once taken, are as exact in float32, which takes half the time.
        """
        if not r.numel():
            return True
        error = d - r
        yard = c.double().sub_(y64).float()
        self.near.take(error)
        noise = _Errors()
        largest = noise.take(yard) + self.yardstick.take(c)
        self.yard.add(noise.n, noise.square, noise.largest)
        if c is d or torch.equal(c, d):
            self.device.add(noise.n, noise.square, noise.largest)
            self.reference.take(yard.sub_(error))
        else:
            device = d.double().sub_(y64).float()
            self.device.take(device)
            self.reference.take(device.sub_(error))
        if not self.equal:
            # Without its sign and its fraction a number is a power of two.
            steps = (r.numpy().view(np.int32) & 0x7F800000).view(np.float32)
            np.maximum(steps, self._step(0.0), out=steps)
            self.ulp = max(self.ulp, float((np.abs(error.numpy()) / steps).max()) * 2.0**23)
        return math.isfinite(largest)

    def _step(self, value: float) -> float:
        """2^23 steps of float32 at a value, or at rms(ref) where that is larger."""
        largest = max(value, self.theirs.rms)
        return max(math.ldexp(0.5, math.frexp(largest)[1]), LEAST_NORMAL)

    def add_all(self, start: int, r: Tensor, y64: Tensor, c: Tensor, d: Tensor) -> None:
        """Take in one block of all four, in which NaN and Inf may be: those are counted, and the places where the
        reference differs from all of ours.
        """
        y = y64.float()  # what float32 makes of it: a value beyond its range is Inf
        keep = torch.isfinite(d - r) & torch.isfinite((c.double() - y64).float())
        keep &= torch.isfinite(y) & torch.isfinite(d)
        if keep.all():
            self.add(start, r, d)
            self.add_closely(r, y64, c, d)
            return
        # Intermediate values may overflow in float32 and not in float64: either of ours may agree.
        agrees = (_same(r, y) | _same(r, c)) & (_same(d, y) | _same(d, c) | _same(d, r))
        self.equal &= bool(_same(r, d).all())
        self.strange += int((~keep & ~agrees).sum())
        self._part()
        for side, x in ((self.theirs, r), (self.ours, d)):
            side.nan, side.inf = side.nan + int(x.isnan().sum()), side.inf + int(x.isinf().sum())
        if keep.any():
            before = self.worst
            self.add(start, r[keep], d[keep])
            if self.worst is not before and self.worst is not None:
                at, ref = self.worst
                self.worst = start + int(keep.nonzero()[at - start]), ref
            self.add_closely(r[keep], y64[keep], c[keep], d[keep])


def _same(a: Tensor, b: Tensor) -> Tensor:
    return (a == b) | (a.isnan() & b.isnan())


def _ends(x: Tensor) -> tuple[float, float]:
    low, high = torch.aminmax(x)
    return float(low), float(high)


def _square(x: Tensor, largest: float) -> float:
    """Sum of squares of float32; those that would leave its range are taken in float64."""
    if not largest:
        return 0.0
    x = x if 1e-12 < largest < 1e15 else x.double()
    return float(x.dot(x))
