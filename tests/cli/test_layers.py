import json

from caffeport.layers import TYPES
from caffeport.layers.documentation import support_table


def test_every_type_has_a_line(caffeport):
    lines = caffeport("layers").stdout.splitlines()[1:]
    assert {line.split()[0] for line in lines} == set(TYPES)


def test_one_type_is_its_docstring(caffeport):
    shown = caffeport("layers", "pooling").stdout
    assert shown.startswith("Pooling: ")
    assert "\nPyTorch  " in shown and "pooling_layer.cpp" in shown


def test_json(caffeport):
    (entry,) = json.loads(caffeport("layers", "InnerProduct", "--json").stdout)
    assert entry["type"] == "InnerProduct" and entry["family"] == "dense"
    assert entry["sections"]["Params"].startswith("num_output")


def test_markdown_is_the_support_table(caffeport):
    assert caffeport("layers", "--markdown").stdout == support_table()


def test_an_unknown_type_names_a_near_one(caffeport):
    result = caffeport("layers", "Polling")
    assert result.exit_code == 2
    assert "did you mean 'Pooling'?" in result.stderr
