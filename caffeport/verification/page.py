"""A report as one HTML page: where each mark goes; the page itself is templates/report.html."""

import math
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from .report import LayerResult, Report

LONGEST_NAME = 80
ROW, LANE = 22, 16  # pixels of the net's drawing
CELL = 18  # largest size of a place in an error map, in pixels


def page(report: Report) -> str:
    """The whole page. Names are shown without control characters and escaped."""
    environment = Environment(
        loader=PackageLoader("caffeport.verification"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"name": shown, "number": number, "short": lambda text: text[:12]}
    return environment.get_template("report.html").render(
        report=report,
        state=lambda row: state(report, row),
        ratios=ratio_chart(report),
        growth=growth_chart(report),
        drawing=Drawing.of(report),
        pictures=[_pictured(row) for row in sorted(report.layers, key=_badness, reverse=True) if row.picture],
    )


def shown(text: str) -> str:
    """A name from a file without what would move the text around it: control characters, and marks of direction."""
    visible = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[: LONGEST_NAME + 1])
    return visible if len(text) <= LONGEST_NAME else visible[:LONGEST_NAME] + "…"


def number(value: float | None, digits: int = 3) -> str:
    if value is None:
        return "-"
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    return f"{value:.{digits}g}".replace("e-0", "e-").replace("e+0", "e")


def state(report: Report, row: LayerResult) -> str:
    """ "fail", "fault" (the reference's), "alone", "segment" or "none"."""
    wrong = {entry.layer for entry in report.weights if entry.differs}
    agrees, grows = row.agrees(report.limits), row.grows_well(report.limits)
    if row.layer in wrong or (agrees is False and not row.fault):
        return "fail"
    if agrees is False:
        return "fault"
    if grows is False:
        return "drift"
    return {"alone": "alone", "segment": "segment", "no": "none"}[row.judged]


def _local_state(report: Report, row: LayerResult) -> str:
    """As `state`, without what the layer was given from the input on."""
    return row.judged if state(report, row) == "drift" else state(report, row)


def _ratio(row: LayerResult) -> float:
    return row.judgement.ratio if row.judgement and not row.judgement.strange else math.inf


def _in_noise(row: LayerResult) -> str:
    return (row.judgement.sign if row.judgement else "") + number(_ratio(row))


def _badness(row: LayerResult) -> float:
    return row.judgement.badness if row.judgement else 0.0


# ---- charts: places are shares of the plot, in percent from the left and from the top


@dataclass(frozen=True)
class Mark:
    x: float
    y: float
    state: str
    title: str


@dataclass(frozen=True)
class Chart:
    marks: list[Mark]
    lines: dict[str, str]  # name -> path
    ticks: list[tuple[float, str]]
    band: float  # from here down is noise
    limit: float | None


class _Scale:
    """Decades, upside down."""

    def __init__(self, values: list[float], low: float, high: float) -> None:
        finite = [v for v in values if 0 < v < math.inf]
        self.low = math.floor(math.log10(min([low, *finite])))
        self.high = math.ceil(math.log10(max([high, *finite])))

    def at(self, value: float) -> float:
        log = math.log10(value) if 0 < value < math.inf else (self.low if value <= 0 else self.high)
        return round(100 * (self.high - min(max(log, self.low), self.high)) / (self.high - self.low), 2)

    def ticks(self) -> list[tuple[float, str]]:
        every = max(1, math.ceil((self.high - self.low) / 8))
        return [(self.at(10.0**n), _power(n)) for n in range(self.low, self.high + 1, every)]


def _power(n: int) -> str:
    return {-1: "0.1", 0: "1", 1: "10", 2: "100"}.get(
        n, "10" + str(n).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    )


def ratio_chart(report: Report) -> Chart:
    """The larger ratio of each row, in the net's order."""
    rows = [(i, row) for i, row in enumerate(report.layers) if row.judgement or row.problem]
    scale = _Scale([_ratio(row) for _, row in rows], 0.1, 100)
    last = max(len(report.layers) - 1, 1)
    marks = [
        Mark(
            round(100 * i / last, 2),
            scale.at(_ratio(row)),
            _local_state(report, row),
            f"{shown(row.layer)}: {row.problem or (row.judgement.sign if row.judgement else '') + number(_ratio(row))}",
        )
        for i, row in rows
    ]
    return Chart(marks, {}, scale.ticks(), scale.at(1), scale.at(report.limits.rms))


def growth_chart(report: Report) -> Chart:
    """Relative error of the reference beside float64 from the input on, and float32's own."""
    rows = [(i, row.growth, row) for i, row in enumerate(report.layers) if row.growth]
    scale = _Scale([v for _, g, _ in rows for v in (g.error, g.noise, g.noise * report.limits.rms)], 1e-8, 1e-5)
    last = max(len(report.layers) - 1, 1)

    def place(i: int, value: float) -> tuple[float, float]:
        return round(100 * i / last, 2), scale.at(value)

    marks = [
        Mark(
            *place(i, g.error),
            "fail" if row.grows_well(report.limits) is False else "alone",
            f"{shown(row.layer)}: error {number(g.error)}, noise {number(g.noise)}",
        )
        for i, g, row in rows
    ]
    lines = {
        "noise": _path([place(i, g.noise) for i, g, _ in rows]),
        "limit": _path([place(i, g.noise * report.limits.rms) for i, g, _ in rows]),
    }
    return Chart(marks, lines, scale.ticks(), 100.0, None)


def _path(points: list[tuple[float, float]]) -> str:
    """A broken line through the points, in SVG's words."""
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in points) if len(points) > 1 else ""


# ---- the net's drawing: one row a layer, a lane for each value that is still to be read


@dataclass(frozen=True)
class Drawing:
    height: int
    width: int
    edges: list[str]
    nodes: list[tuple[float, float, str, LayerResult]]

    @classmethod
    def of(cls, report: Report) -> "Drawing":
        layers: dict[str, LayerResult] = {}
        for row in report.layers:
            if row.layer not in layers or state(report, row) in ("fail", "drift"):
                layers[row.layer] = row
        index = {name: i for i, name in enumerate(layers)}
        readers: dict[str, list[tuple[int, int]]] = {name: [] for name in layers}
        for name, row in layers.items():
            for place, bottom in enumerate(row.bottoms):
                if bottom in index and index[bottom] < index[name]:
                    readers[bottom].append((index[name], place))
        lanes, edge_lanes, busy = _lanes(layers, index, readers)

        def x(lane: int) -> float:
            return LANE * lane + LANE / 2

        def y(i: int) -> float:
            return ROW * i + ROW / 2

        edges = []
        for (writer, reader), lane in edge_lanes.items():
            points = [(x(lanes[writer]), y(writer))]
            if lane != lanes[writer]:
                points.append((x(lane), y(writer + 1) if reader > writer + 1 else y(reader)))
            if lane != lanes[reader]:
                points.append((x(lane), y(reader - 1) if reader > writer + 1 else y(writer)))
            points.append((x(lanes[reader]), y(reader)))
            edges.append(_path(points))
        nodes = [(x(lanes[i]), y(i), state(report, row), row) for i, row in enumerate(layers.values())]
        return cls(ROW * len(layers), LANE * max(busy, 1), edges, nodes)


def _lanes(
    layers: dict[str, LayerResult], index: dict[str, int], readers: dict[str, list[tuple[int, int]]]
) -> tuple[list[int], dict[tuple[int, int], int], int]:
    """A lane for each layer and each edge (writer, reader); the first reader of a layer goes on in its lane."""
    taken: set[int] = set()
    most = 0

    def free() -> int:
        nonlocal most
        lane = next(lane for lane in range(len(taken) + 1) if lane not in taken)
        taken.add(lane)
        most = max(most, lane + 1)
        return lane

    lanes: list[int] = []
    edges: dict[tuple[int, int], int] = {}
    for i, (name, row) in enumerate(layers.items()):
        incoming = [(index[b], i) for b in row.bottoms if b in index and (index[b], i) in edges]
        lane = edges[incoming[0]] if incoming else free()
        for edge in incoming[1:]:
            taken.discard(edges[edge])
        lanes.append(lane)
        outgoing = sorted({reader for reader, _ in readers[name]})
        if not outgoing:
            taken.discard(lane)
        for k, reader in enumerate(outgoing):
            edges[i, reader] = lane if k == 0 else free()
    return lanes, edges, most


# ---- pictures of the worst layers


def _pictured(row: LayerResult) -> dict[str, Any]:
    """Bars and cells: heights in percent, strengths from 0 to 1."""
    assert row.picture is not None
    picture = row.picture
    tallest = max([1, *picture.ours, *picture.theirs])

    def height(n: int) -> float:
        return round(100 * math.log1p(n) / math.log1p(tallest), 1)

    largest = max([0.0, *(v for line in picture.error for v in line)])
    cells = [[round(v / largest, 3) if largest else 0.0 for v in line] for line in picture.error]
    return {
        "row": row,
        "ours": [height(n) for n in picture.ours],
        "theirs": [height(n) for n in picture.theirs],
        "edges": picture.edges,
        "cells": cells,
        "largest": largest,
        "width": min(190, CELL * len(cells[0])) if cells else 0,
    }
