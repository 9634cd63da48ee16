"""PyTorch source: what it says, that it is well formed, and that no name gets into it as code."""

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import caffeport
from caffeport.export.source import identifier, quoted
from tests.conftest import DIGITS
from tests.export.test_onnx import SMALL


def imported(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tool(*command: str | Path) -> None:
    done = subprocess.run([sys.executable, "-m", *map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_digits_net_reads_as_typed_by_a_person(tmp_path: Path) -> None:
    network = caffeport.load(DIGITS / "deploy.prototxt", DIGITS / "digits.caffemodel")
    done = caffeport.export_source(network, tmp_path / "digits.py")
    text = done.path.read_text()
    assert "import caffeport" not in text
    forward = text[text.index("def forward") : text.index("@classmethod")]
    assert [line.strip() for line in forward.splitlines()[2:] if line.strip()] == [
        "x = F.relu(self.conv1(data))",
        "x = F.relu(self.conv2(x))",
        "x = F.max_pool2d(x, 3, 2, ceil_mode=True)",
        "x = F.relu(self.ip1(x.flatten(1)))",
        "x = self.ip2(x)",
        "x = F.softmax(x, 1)",
        "return x",
    ]


def test_weights_of_a_converted_folder_load_and_give_the_same_bits(tmp_path: Path) -> None:
    network = caffeport.load(DIGITS / "deploy.prototxt", DIGITS / "digits.caffemodel")
    done = caffeport.export_source(network, tmp_path / "digits.py")
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    net = getattr(imported(done.path), done.name).from_pretrained(str(tmp_path / "model.safetensors"))
    x = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(net(x), network(x))
    program = torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim("N")},))
    assert torch.equal(program.module()(x[:2]), network(x[:2]))


def test_names_that_are_no_identifiers_are_in_one_table(tmp_path: Path) -> None:
    network = caffeport.load(SMALL.replace('"fc"', '"fc8-euclidean"').encode())
    done = caffeport.export_source(network, tmp_path / "net.py")
    assert done.renamed == {"fc8-euclidean": "fc8_euclidean"}
    module = imported(done.path)
    assert done.renamed == module.RENAMED
    save_file(
        {key: tensor.contiguous() for key, tensor in network.state_dict().items()}, tmp_path / "model.safetensors"
    )
    net = getattr(module, done.name).from_pretrained(str(tmp_path / "model.safetensors"))
    x = torch.rand(2, 3, 8, 9)
    with torch.no_grad():
        assert torch.equal(net(x), network(x))


REPEATED = 'input: "data" input_shape { dim: 1 dim: 4 dim: 6 dim: 6 }' + "".join(
    f"""
layer {{ name: "conv_{i}" type: "Convolution" bottom: "{"data" if i == 1 else f"c{i - 1}"}" top: "c{i}"
        convolution_param {{ num_output: 4 kernel_size: 3 pad: 1 weight_filler {{ type: "xavier" }} }} }}
layer {{ name: "bn_{i}" type: "BatchNorm" bottom: "c{i}" top: "c{i}" }}
layer {{ name: "scale_{i}" type: "Scale" bottom: "c{i}" top: "c{i}" scale_param {{ bias_term: true }} }}
layer {{ name: "relu_{i}" type: "ReLU" bottom: "c{i}" top: "c{i}" }}"""
    for i in (1, 2, 3)
)


def test_what_repeats_becomes_a_method(tmp_path: Path) -> None:
    text = caffeport.export_source(caffeport.load(REPEATED.encode()), tmp_path / "net.py").path.read_text()
    assert 'self.add_unit("2", nn.Conv2d(4, 4, kernel_size=3, padding=1))' in text
    assert 'x = F.relu(self.unit(x, "2"))' in text


SHARING = """input: "data" input_shape { dim: 1 dim: 4 }
layer { name: "a" type: "InnerProduct" bottom: "data" top: "a" param { name: "w" } inner_product_param { num_output: 2
        bias_term: false weight_filler { type: "xavier" } } }
layer { name: "b" type: "InnerProduct" bottom: "a" top: "b" param { name: "w" share_mode: PERMISSIVE }
        inner_product_param { num_output: 4 bias_term: false } }
layer { name: "c" type: "InnerProduct" bottom: "b" top: "c" param { name: "w" } inner_product_param { num_output: 2
        bias_term: false } }"""


def test_shared_parameters_stay_shared(tmp_path: Path) -> None:
    network = caffeport.load(SHARING.encode())
    done = caffeport.export_source(network, tmp_path / "net.py")
    state = {key: tensor for key, tensor in network.state_dict().items() if key == "a.weight"}
    save_file(state, tmp_path / "model.safetensors")
    net = getattr(imported(done.path), done.name).from_pretrained(str(tmp_path / "model.safetensors"))
    assert net.c.weight is net.a.weight
    with torch.no_grad():
        assert torch.equal(net(torch.ones(1, 4)), network(torch.ones(1, 4)))


@pytest.mark.parametrize("net", [SMALL, REPEATED, SHARING], ids=["small", "repeated", "sharing"])
def test_ruff_and_mypy_have_nothing_to_say(tmp_path: Path, net: str) -> None:
    path = caffeport.export_source(caffeport.load(net.encode()), tmp_path / "net.py").path
    tool("ruff", "check", "--isolated", path)
    tool("ruff", "format", "--isolated", "--check", path)
    tool("ruff", "format", "--isolated", "--line-length", "120", "--check", path)
    tool("mypy", "--config-file=", "--cache-dir", tmp_path / "cache", path)
    shutil.rmtree(tmp_path / "cache")


HOSTILE = [
    *('"""', "'''", "\\", "\n", "\r\n", "\x00", "self", "F", "class", "torch"),
    '"; import os; os.abort() #',
    "x\nimport os; os.abort()",
    "\u2028raise SystemExit",
    "{__import__('os').abort()}",
]


AWKWARD = r"""name: " "
layer { name: "graph" type: "Input" top: "torch.x" input_param { shape { dim: 1 dim: 2 dim: 3 } } }
layer { name: "in2" type: "Input" top: "\\" input_param { shape { dim: 1 dim: 2 dim: 12 } } }
layer { name: "in3" type: "Input" top: "it's" input_param { shape { dim: 1 dim: 2 } } }
layer { name: "graph" type: "LSTMUnit" bottom: "torch.x" bottom: "\\" bottom: "it's"
        top: "a_cell_of_a_long_name" top: "\"two\" 'quotes'" }
layer { name: "code" type: "PReLU" bottom: "\"two\" 'quotes'" top: "\"two\" 'quotes'" }"""


def test_awkward_names_are_laid_out_and_traced(tmp_path: Path) -> None:
    network = caffeport.load(AWKWARD.encode())
    done = caffeport.export_source(network, tmp_path / "net.py")
    tool("ruff", "check", "--isolated", done.path)
    tool("ruff", "format", "--isolated", "--check", done.path)
    net, x = getattr(imported(done.path), done.name)(), tuple(torch.rand(1, 2, n) for n in (3, 12))
    fed = (*x, torch.ones(1, 2))
    with torch.no_grad():
        traced = torch.export.export(net, fed).module()(*fed)
    assert set(traced) == set(network.outputs)


LONG = "a_name_of_a_layer_with_as_many_words_as_people_use_for_inner_blobs"
LONG_NAMES = f"""name: "{LONG}" input: "{LONG}_in" input_shape {{ dim: 1 dim: 4 dim: 6 dim: 6 }}
layer {{ name: "{LONG}" type: "PReLU" bottom: "{LONG}_in" top: "{LONG}_1" param {{ name: "w" }} }}
layer {{ name: "short" type: "PReLU" bottom: "{LONG}_in" top: "{LONG}_2" param {{ name: "w" }} }}
layer {{ name: "{LONG}_too" type: "Deconvolution" bottom: "{LONG}_in" top: "y"
        convolution_param {{ num_output: 3 kernel_size: 3 pad: 1 bias_term: false }} }}
layer {{ name: "pool" type: "Pooling" bottom: "{LONG}_1" top: "{LONG}_3" top: "{LONG}_4"
        pooling_param {{ kernel_size: 2 stride: 2 }} }}"""


def test_long_names_are_laid_out(tmp_path: Path) -> None:
    done = caffeport.export_source(caffeport.load(LONG_NAMES.encode()), tmp_path / "net.py")
    tool("ruff", "check", "--isolated", done.path)
    tool("ruff", "format", "--isolated", "--check", done.path)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_text(tmp_path: Path, name: str) -> None:
    check_names([name, f"{name}1", f"{name}2", f"{name}3", f"{name}4", f"{name}5"], tmp_path)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    names=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), min_size=6, max_size=6, unique=True)
)
def test_any_names_are_text(names: list[str], tmp_path: Path) -> None:
    check_names(names, tmp_path)


def check_names(names: list[str], folder: Path) -> None:
    from google.protobuf import text_format

    from caffeport.formats.schema import message_class

    net = message_class("NetParameter")(name=names[0])
    net.layer.add(name=names[1], type="Input", top=[names[2]]).input_param.shape.add().dim[:] = [1, 3]
    dense = net.layer.add(name=names[3], type="InnerProduct", bottom=[names[2]], top=[names[4]])
    dense.inner_product_param.num_output = 2
    net.layer.add(name=names[3], type="TanH", bottom=[names[4]], top=[names[5]])
    net.layer.add(name=names[3], type="Sigmoid", bottom=[names[4]], top=[names[5] + "!"])
    network = caffeport.load(text_format.MessageToString(net, as_utf8=True).encode())
    path = caffeport.export_source(network, folder / "net.py").path  # imports and runs the file
    text = path.read_text(encoding="ascii")
    compile(text, "net", "exec")
    assert not re.search(r"^\s*import os|^raise", text, re.MULTILINE)


@given(st.text())
def test_quoted_is_python_for_the_text(text: str) -> None:
    assert eval(quoted(text)) == text
    assert "\n" not in quoted(text)


@given(st.text())
def test_identifier_is_one(text: str) -> None:
    assert identifier(text, "layer").isidentifier()
    assert identifier(text, "layer").isascii()
