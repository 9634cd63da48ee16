"""A report as JSON and as a page."""

import json
import re
from contextlib import suppress
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import caffeport
from caffeport.verification import Limits, Report
from tests.verification.nets import CHAIN, chain, digits, pictures, recorded


@pytest.fixture(scope="module")
def failed() -> Report:
    network, reference = digits()
    with torch.no_grad():
        network.get_submodule("conv2").weight[0, 0, 0, 0] *= 1.5
    return caffeport.verify(network, reference, precisions=["ieee", "tf32"])


def test_json_is_strict_and_complete(failed: Report) -> None:
    value = json.loads(failed.to_json(), parse_constant=pytest.fail)
    assert (value["passed"], value["first_failure"]) == (False, "conv2")
    assert Report.from_dict(value) == failed
    assert Report.from_dict(value).to_dict() == failed.to_dict()


def test_infinite_ratios_come_back() -> None:
    network = chain()
    reference = recorded(network, pictures(network))
    reference["conv::conv"] = reference["conv::conv"] * 0 + float("nan")
    report = caffeport.verify(network, reference)
    assert Report.from_dict(json.loads(report.to_json())).to_dict() == report.to_dict()
    assert "NaN" in report.to_html()


def test_a_saved_report_is_judged_again(failed: Report, tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(failed.to_json())
    again = Report.read(tmp_path / "r.json")
    assert not again.passed
    assert again.judged_by(Limits(1e-6, 1e-6)).first_failure == "conv1"


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"format": 1}', '{"format": 1, "network": 3, "layers": [1]}', "[" * 100_000]
)
def test_no_report(content: str, tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(content)
    with pytest.raises(caffeport.FormatError, match=r"r\.json"):
        Report.read(tmp_path / "r.json")


@settings(max_examples=60)
@given(st.data())
def test_a_damaged_report_is_refused_or_read(failed: Report, data: st.DataObject) -> None:
    value = failed.to_dict()
    key = data.draw(st.sampled_from(sorted(value)))
    value[key] = data.draw(st.sampled_from([None, 1, "x", [], [{}], {}, [None]]))
    with suppress(caffeport.CaffeportError):  # any other exception fails the test
        Report.from_dict(value).to_dict()


@settings(max_examples=150)
@given(st.data())
def test_damage_within_a_report(failed: Report, data: st.DataObject) -> None:
    """What is read can be shown: no wrong value gets past `from_dict`."""
    value: Any = failed.to_dict()
    place = value
    for _ in range(data.draw(st.integers(1, 5))):
        keys = sorted(place) if isinstance(place, dict) else list(range(len(place)))
        inner = [key for key in keys if isinstance(place[key], dict | list) and place[key]]
        key = data.draw(st.sampled_from(inner or keys))
        if not inner:
            break
        place = place[key]
    key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else list(range(len(place)))))
    place[key] = data.draw(st.sampled_from([None, 5, "x", [], {}, -1, True, [1]]))
    try:
        report = Report.from_dict(value)
    except caffeport.FormatError:
        return
    assert report.verdict
    assert report.to_json()
    assert report.to_html()


def test_a_list_that_is_too_short(failed: Report) -> None:
    value: Any = failed.to_dict()
    shown = next(row for row in value["layers"] if row["picture"])
    shown["picture"]["edges"] = []
    with pytest.raises(caffeport.FormatError, match="IndexError"):
        Report.from_dict(value)


class Page(HTMLParser):
    """Tags that were left open, and all attributes."""

    EMPTY = frozenset({"meta", "br", "link", "img", "input"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def parsed(report: Report) -> Page:
    page = Page()
    page.feed(report.to_html())
    assert not page.open
    return page


def test_the_page_is_whole_and_needs_nothing_else(failed: Report) -> None:
    page = parsed(failed)
    assert not [tag for tag, attributes in page.seen if tag in ("script", "link", "img", "iframe")]
    assert not [
        1 for _, attributes in page.seen for name in attributes if name in ("src", "href") or name.startswith("on")
    ]
    assert sum(tag == "circle" for tag, _ in page.seen) == 10
    assert "differs in one value, at (0, 0, 0, 0)" in failed.to_html()


def test_names_are_hostile_text() -> None:
    evil = '<script>alert(1)</script>\\" onload=x \\u202e\\n{{ 7*7 }}'.replace("\\u202e", "\u202e").replace(
        "\\n", "\\n"
    )
    network = caffeport.load(CHAIN.replace('"norm"', f'"{evil}"').encode(), seed=3)
    reference = recorded(network, pictures(network))
    report = caffeport.verify(network, reference)
    text = report.to_html()
    parsed(report)
    assert "<script" not in text
    assert "\u202e" not in text
    assert "{{ 7*7 }}" in text
    assert re.search(r"&lt;script&gt;alert\(1\)&lt;/script&gt;", text)


@settings(max_examples=15)
@given(
    st.text(
        alphabet=st.characters(exclude_characters='\0"\\\n', exclude_categories=("Cs", "Cc")), min_size=1, max_size=90
    )
)
def test_any_name_gives_a_whole_page(name: str) -> None:
    network = caffeport.load(CHAIN.replace('"norm"', f'"{name}"').encode(), seed=3)
    parsed(caffeport.verify(network, recorded(network, pictures(network))))


def test_a_branching_net_is_drawn_with_a_lane_for_each_branch() -> None:
    net = """
    layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 2 dim: 4 dim: 4 } } }
    layer { name: "a" type: "Power" bottom: "data" top: "a" power_param { scale: 2 } }
    layer { name: "b" type: "Power" bottom: "a" top: "b" power_param { scale: 3 } }
    layer { name: "c" type: "Power" bottom: "a" top: "c" power_param { scale: 4 } }
    layer { name: "sum" type: "Eltwise" bottom: "b" bottom: "c" top: "sum" }
    """
    network = caffeport.load(net.encode())
    from caffeport.verification.page import LANE, Drawing

    drawing = Drawing.of(caffeport.verify(network, recorded(network, pictures(network))))
    lanes = {row.layer: int(x // LANE) for x, _, _, row in drawing.nodes}
    assert lanes == {"a": 0, "b": 0, "c": 1, "sum": 0}
    assert len(drawing.edges) == 4
