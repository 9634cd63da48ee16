"""The rule for Crop layers without crop_param, against the offsets that FCN's authors later wrote into their files."""

from pathlib import Path

import pytest

from caffeport.alignment import bare_crops
from caffeport.description import describe
from caffeport.layers.shape import Crop
from tests.conftest import SHARED

FILES = sorted((SHARED / "zoo/prototxts").glob("*fcn*-fcn*.prototxt")) + sorted(
    (SHARED / "zoo/prototxts").glob("shelhamer__fcn*.prototxt")
)
INPUTS = {"data": (1, 3, 500, 400), "color": (1, 3, 500, 400), "depth": (1, 1, 500, 400), "label": (1, 1, 500, 400)}


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_fcn_offsets(path: Path) -> None:
    graph = describe(path, inputs=INPUTS).graph
    crops = [step for step in graph.steps if isinstance(step.layer, Crop)]
    stated = {step.key: tuple(step.layer.param.offset) * 2 for step in crops}
    for step in crops:
        step.layer.spec.ClearField("crop_param")
    assert stated and {crop.step.key: crop.offset for crop in bare_crops(graph)} == stated
