"""What a verification found: one object, shown as a table, as JSON and as a page."""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ..errors import FormatError
from .judge import Growth, Judgement, Limits, Moments
from .weights import BlobHash, LayerWeights

FORMAT = 1


@dataclass(frozen=True)
class Cause:
    """A supposition that explains a difference. `before` and `after`: the ratio without and with it."""

    what: str
    before: float
    after: float
    evidence: str = ""


@dataclass(frozen=True)
class Picture:
    """What a page shows of one layer: histograms of both over the same bins, and mean |difference| over the map."""

    edges: tuple[float, float]
    ours: tuple[int, ...]
    theirs: tuple[int, ...]
    error: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class LayerResult:
    """One top of one layer.

    judged    "alone", "segment" or "no"
    segment   the layers that were run together, where it is "segment"
    reason    why it was not judged
    problem   why it is wrong without a number: another shape, cannot run
    fault     a known fault of the reference's source that a difference is put down to
    exact     alone, the layer must agree bit for bit
    items     how many of the batch the reference holds, where not all
    growth    beside the whole net run from its inputs; None where that did not run, and for a BatchNorm before its
              Scale, which are one call there
    bottoms   layers that it reads
    """

    layer: str
    type: str
    top: str
    shape: tuple[int, ...] = ()
    judged: Literal["alone", "segment", "no"] = "no"
    segment: tuple[str, ...] = ()
    reason: str = ""
    problem: str = ""
    fault: str = ""
    exact: bool = False
    floor: float = 0.0
    items: int | None = None
    judgement: Judgement | None = None
    growth: Growth | None = None
    bottoms: tuple[str, ...] = ()
    picture: Picture | None = None

    def agrees(self, limits: Limits) -> bool | None:
        """Whether the layer means what the reference means; None where that was not judged, and under limits so
        narrow that a bound does not tell.
        """
        if self.problem:
            return False
        if self.judgement is None:
            return None
        if self.exact and self.judged == "alone":
            return self.judgement.equal
        agrees = self.judgement.within(limits)
        return None if self.judgement.bound and not agrees else agrees

    def grows_well(self, limits: Limits) -> bool | None:
        """Whether the value agrees when the whole net runs from its inputs."""
        return None if self.growth is None else self.growth.within(limits)


@dataclass(frozen=True)
class OutputResult:
    """One output of the whole net in the arithmetic under test.

    growth     beside float64, in noise
    top1, top5 share of items whose best class agrees with the reference, and lies among its best five; None for no
    classes
    rank       Spearman's correlation over the items, where the output is one score for each of 3 or more
    """

    name: str
    growth: Growth | None
    top1: float | None = None
    top5: float | None = None
    rank: float | None = None


@dataclass(frozen=True)
class PrecisionResult:
    """How far another precision moves one output: ratio to float32's noise, errors beside float64."""

    precision: str
    device: str
    output: str
    ratio: float
    relative_l2: float
    largest_error: float
    top1: float | None
    emulated: bool = False


@dataclass(frozen=True)
class Report:
    """The result of `caffeport.verify`."""

    network: str
    reference: str
    layers: tuple[LayerResult, ...]
    weights: tuple[LayerWeights, ...]
    outputs: tuple[OutputResult, ...] = ()
    wiring: tuple[str, ...] = ()
    causes: tuple[Cause, ...] = ()
    precisions: tuple[PrecisionResult, ...] = ()
    notes: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    stopped: bool = False

    # ---- the verdict

    @property
    def passed(self) -> bool:
        """Whether nothing that was judged fails, and something was."""
        return (
            self.first_failure is None and not self.wiring and any(row.judgement or row.growth for row in self.layers)
        )

    @property
    def first_failure(self) -> str | None:
        """The first layer, in the net's order, that fails by itself; or else the first that fails from the input on."""
        wrong = {entry.layer for entry in self.weights if entry.differs}
        for row in self.layers:
            if row.layer in wrong or (row.agrees(self.limits) is False and not row.fault):
                return row.layer
        for row in self.layers:
            if row.grows_well(self.limits) is False:
                return row.layer
        for output in self.outputs:
            if output.growth and not output.growth.within(self.limits):
                return next((row.layer for row in self.layers if row.top == output.name), output.name)
        return None

    @property
    def failures(self) -> list[LayerResult]:
        """Rows that fail by themselves or from the input on, without an excuse."""
        return [
            row
            for row in self.layers
            if not row.fault and False in (row.agrees(self.limits), row.grows_well(self.limits))
        ]

    @property
    def coverage(self) -> dict[str, int]:
        """Number of layers judged alone, only within a segment, and not at all."""
        alone = {row.layer for row in self.layers if row.judged == "alone"}
        inside = {name for row in self.layers if row.judged == "segment" for name in row.segment} - alone
        every = {row.layer for row in self.layers}
        return {"alone": len(alone), "segment": len(inside), "no": len(every - alone - inside)}

    @property
    def verdict(self) -> str:
        """One sentence."""
        cover, total = self.coverage, len({row.layer for row in self.layers})
        judged = f"{cover['alone']} of {total} layers judged alone"
        judged += f", {cover['segment']} in a segment" if cover["segment"] else ""
        judged += f", {cover['no']} not judged" if cover["no"] else ""
        if self.passed:
            return f"passed: {judged}"
        if self.first_failure is None and not self.wiring:
            return f"nothing was judged: {judged}"
        if self.first_failure is None:
            return f"failed: {self.wiring[0]}; {judged}"
        return f"failed: first at layer {self.first_failure!r}{self._where}; {judged}"

    @property
    def _where(self) -> str:
        row = next((row for row in self.layers if row.layer == self.first_failure), None)
        if row is not None and row.judged == "segment" and len(row.segment) > 1 and row.agrees(self.limits) is False:
            return f" or one of the {len(row.segment) - 1} before it since {row.segment[0]!r}"
        return ""

    @property
    def needed(self) -> Limits:
        """The least limits under which all that has a number would pass; a bound is none."""
        ratios = [
            (r.ratio, r.ratio_max)
            for row in self.layers
            if not row.fault
            for r in (row.judgement, row.growth)
            if r and not (isinstance(r, Judgement) and r.bound)
        ]
        return Limits(max((r for r, _ in ratios), default=0.0), max((m for _, m in ratios), default=0.0))

    def judged_by(self, limits: Limits) -> "Report":
        """The same numbers under other limits, without running anything."""
        return replace(self, limits=limits)

    # ---- keeping it

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it: infinite numbers are the strings "inf" and "nan"."""
        head = {
            "format": FORMAT,
            "passed": self.passed,
            "first_failure": self.first_failure,
            "verdict": self.verdict,
            "coverage": self.coverage,
            "needed": asdict(self.needed),
        }
        layers = [
            {**asdict(row), "passed": row.agrees(self.limits), "passed_whole": row.grows_well(self.limits)}
            for row in self.layers
        ]
        value = _jsonable({**head, **asdict(self), "layers": layers})
        assert isinstance(value, dict)
        return value

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=1, allow_nan=False)

    def to_html(self) -> str:
        """One page that needs nothing else."""
        from .page import page

        return page(self)

    @classmethod
    def from_dict(cls, value: Any) -> "Report":
        """A saved report again. Raises FormatError for anything else."""
        if not isinstance(value, dict) or value.get("format") != FORMAT:
            raise FormatError(f"not a report of caffeport in format {FORMAT}: write it with `caffeport verify --json`")
        try:
            report = cls(
                network=str(value["network"]),
                reference=str(value["reference"]),
                layers=tuple(map(_layer, value["layers"])),
                weights=tuple(
                    LayerWeights(
                        w["layer"],
                        tuple(BlobHash(b["name"], tuple(b["shape"]), b["sha256"]) for b in w["blobs"]),
                        w["differs"],
                    )
                    for w in value["weights"]
                ),
                outputs=tuple(
                    OutputResult(**{**o, **_floats(o, "top1", "top5", "rank"), "growth": _growth(o["growth"])})
                    for o in value["outputs"]
                ),
                wiring=tuple(value["wiring"]),
                causes=tuple(Cause(**{**c, **_floats(c, "before", "after")}) for c in value["causes"]),
                precisions=tuple(
                    PrecisionResult(**{**p, **_floats(p, "ratio", "relative_l2", "largest_error", "top1")})
                    for p in value["precisions"]
                ),
                notes=tuple(value["notes"]),
                environment=dict(value["environment"]),
                limits=Limits(*map(float, value["limits"].values())),
                stopped=bool(value["stopped"]),
            )
            _check(report, cls)
            return report
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise FormatError(f"a damaged report of caffeport: {type(error).__name__}: {error}") from error

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> "Report":
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except (ValueError, RecursionError) as error:
            raise FormatError(f"{path}: not JSON: {error}") from error
        except FormatError as error:
            raise FormatError(f"{path}: {error}") from error


def _check(value: Any, kind: Any) -> None:
    """Raise TypeError where a value, or anything in it, is not what the annotation says."""
    origin, args = get_origin(kind), get_args(kind)
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        right = isinstance(value, kind)  # type: ignore[arg-type]
        parts = [(getattr(value, name), hint) for name, hint in hints.items()] if right else []
    elif origin is UnionType:
        right = True  # only X | None is used here
        parts = [] if value is None else [(value, next(arg for arg in args if arg is not type(None)))]
    elif origin is tuple:
        right = isinstance(value, tuple) and (args[-1] is Ellipsis or len(value) == len(args))
        parts = [(item, args[0]) for item in value] if right else []
    elif origin is dict:
        right = isinstance(value, dict)
        parts = [(item, arg) for pair in value.items() for item, arg in zip(pair, args, strict=True)] if right else []
    elif origin is Literal:
        right, parts = isinstance(value, str) and value in args, []
    else:
        right, parts = type(value) is kind or (kind is float and type(value) is int), []
    if not right:
        raise TypeError(f"{str(value)[:40]!r} is not of type {getattr(kind, '__name__', kind)}")
    for item, hint in parts:
        _check(item, hint)


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _floats(value: dict[str, Any], *names: str) -> dict[str, float | None]:
    return {name: None if value[name] is None else float(value[name]) for name in names}


def _growth(value: dict[str, Any] | None) -> Growth | None:
    return None if value is None else Growth(**{key: float(item) for key, item in value.items()})


def _moments(value: dict[str, Any]) -> Moments:
    mean, sd, low, high = (float(value[name]) for name in ("mean", "sd", "low", "high"))
    return Moments(mean, sd, low, high, int(value["nan"]), int(value["inf"]))


def _judgement(value: dict[str, Any] | None) -> Judgement | None:
    if value is None:
        return None
    moments: dict[str, Any] = {side: _moments(value[side]) for side in ("ours", "theirs")}
    whole: dict[str, Any] = {
        "equal": bool(value["equal"]),
        "strange": int(value["strange"]),
        "at": tuple(value["at"]),
        "bound": bool(value.get("bound")),
    }
    rest: dict[str, Any] = {key: float(item) for key, item in value.items() if key not in (*moments, *whole)}
    return Judgement(**rest, **whole, **moments)


def _layer(value: dict[str, Any]) -> LayerResult:
    row = {key: item for key, item in value.items() if key not in ("passed", "passed_whole")}
    picture = row["picture"]
    row |= {
        "shape": tuple(row["shape"]),
        "segment": tuple(row["segment"]),
        "bottoms": tuple(row["bottoms"]),
        "floor": float(row["floor"]),
        "judgement": _judgement(row["judgement"]),
        "growth": _growth(row["growth"]),
        "picture": picture
        and Picture(
            (float(picture["edges"][0]), float(picture["edges"][1])),
            tuple(picture["ours"]),
            tuple(picture["theirs"]),
            tuple(tuple(map(float, line)) for line in picture["error"]),
        ),
    }
    return LayerResult(**row)


def agreement(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]], best: int) -> float:
    """Share of items whose best class of `ours` lies among the `best` of `theirs`."""
    hits = 0
    for mine, other in zip(ours, theirs, strict=True):
        ranked = sorted(range(len(other)), key=lambda i: -other[i])[:best]
        hits += max(range(len(mine)), key=lambda i: mine[i]) in ranked
    return hits / max(len(ours), 1)
