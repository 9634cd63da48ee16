"""`load`: weights meet their net; and no bad file does harm."""

import hashlib
import logging
import subprocess
import sys
import time
from inspect import signature
from pathlib import Path

import h5py
import numpy as np
import pytest

import caffeport
from caffeport import (
    CaffeportError,
    FormatError,
    InputError,
    Network,
    ShapeError,
    UnsupportedLayer,
    WeightsError,
    loading,
)
from caffeport.folder import DEFAULTS
from caffeport.formats.schema import Message, NetParameter
from caffeport.layers import Array
from caffeport.store import convert
from tests.conftest import DIGITS, ROOT
from tests.test_graph import DATA, layer

INPUT = 'input: "data" input_shape { dim: 1 dim: 1 dim: 2 dim: 2 }\n'
SMALL = (  # learns 2 + 2 + 16 + 2 values
    INPUT
    + layer("conv", "Convolution", "data", "conv", "convolution_param { num_output: 2 kernel_size: 1 }")
    + layer("relu", "ReLU", "conv", "conv")
    + layer("ip", "InnerProduct", "conv", "ip", "inner_product_param { num_output: 2 }")
)


def small() -> Message:
    """The net of SMALL as V2 binary holds it, with arrays of distinct numbers, between layers without arrays."""
    net = NetParameter(name="small")
    numbers = iter(np.arange(1, 100, dtype=np.float32) / 7)
    net.layer.add(name="data", type="Input", top=["data"]).input_param.shape.add().dim[:] = [1, 1, 2, 2]
    for name, type_, bottom, shapes in [
        ("conv", "Convolution", "data", [(2, 1, 1, 1), (2,)]),
        ("relu", "ReLU", "conv", []),
        ("ip", "InnerProduct", "conv", [(2, 8), (2,)]),
        ("prob", "Softmax", "ip", []),
    ]:
        spec = net.layer.add(name=name, type=type_, bottom=[bottom], top=["conv" if name == "relu" else name])
        for shape in shapes:
            blob = spec.blobs.add()
            blob.shape.dim[:] = shape
            blob.data[:] = [next(numbers) for _ in range(int(np.prod(shape)))]
    net.layer[1].convolution_param.num_output = 2
    net.layer[1].convolution_param.kernel_size[:] = [1]
    net.layer[3].inner_product_param.num_output = 2
    return net


def load(net: str, weights: Message | bytes | None = None, **arguments: object) -> Network:
    data = weights.SerializeToString() if isinstance(weights, NetParameter) else weights
    return caffeport.load(net.encode(), data, **arguments)  # type: ignore[arg-type]


def state(network: Network) -> dict[str, Array]:
    return {key: value.numpy().copy() for key, value in network.state_dict().items()}


def same(a: dict[str, Array], b: dict[str, Array]) -> bool:
    return a.keys() == b.keys() and all(a[key].tobytes() == b[key].tobytes() for key in a)


# ---- weights go to layers by name


def test_arrays_are_copied_as_they_are() -> None:
    got = state(load(SMALL, small()))
    assert got["conv.weight"].ravel().tolist() == pytest.approx([1 / 7, 2 / 7])
    assert got["ip.weight"][1, 7] == np.float32(20) / 7
    assert got["ip.bias"].tolist() == pytest.approx([3, 22 / 7])


def test_the_file_can_be_deleted_after_loading(tmp_path: Path) -> None:
    path = tmp_path / "small.caffemodel"
    path.write_bytes(small().SerializeToString())
    network = caffeport.load(SMALL.encode(), path)
    path.write_bytes(b"\0" * path.stat().st_size)
    assert same(state(network), state(load(SMALL, small())))


def test_the_weights_phase_and_rules_do_not_matter() -> None:
    net = small()
    for spec in net.layer:
        spec.phase = 0  # TRAIN, as in a snapshot
        spec.include.add(phase=0)
    assert same(state(load(SMALL, net)), state(load(SMALL, small())))


def test_every_layer_that_the_weights_lack_is_named() -> None:
    net = small()
    net.layer[1].name, net.layer[3].name = "conv_old", "ip_old"
    with pytest.raises(WeightsError, match=r"'conv' \(Convolution\), 'ip' \(InnerProduct\).*'conv_old', 'ip_old'"):
        load(SMALL, net)


def test_not_strict_leaves_fillers_and_warns(caplog: pytest.LogCaptureFixture) -> None:
    net = small()
    del net.layer[3]
    with caplog.at_level(logging.WARNING, "caffeport"):
        network = load(SMALL, net, strict=False)
    assert "'ip' (InnerProduct)" in caplog.text and "fillers" in caplog.text
    assert not network.get_submodule("ip").weight.any()
    assert network.get_submodule("conv").weight.any()


def test_other_shapes_are_an_error_with_both() -> None:
    larger = SMALL.replace("dim: 2 dim: 2", "dim: 3 dim: 3").replace("num_output: 2 kernel", "num_output: 3 kernel")
    with pytest.raises(WeightsError) as error:
        load(larger, small())
    for words in ("'conv'", "2 x 1 x 1 x 1", "3 x 1 x 1 x 1", "'ip'", "2 x 8", "2 x 27"):
        assert words in str(error.value)


def test_layers_that_the_net_lacks_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    conv = layer("conv", "Convolution", "data", "conv", "convolution_param { num_output: 2 kernel_size: 1 }")
    with caplog.at_level(logging.WARNING, "caffeport"):
        load(INPUT + conv, small())
    assert "the net has no layer 'ip' (2 x 8, 2)" in caplog.text


def test_repeated_names_the_first_layer_takes_the_weights() -> None:
    text = INPUT + "".join(
        layer("conv", "Convolution", "data", top, "convolution_param { num_output: 2 kernel_size: 1 }") for top in "ab"
    )
    with pytest.raises(WeightsError, match="'conv#2'"):
        load(text, small())
    network = load(text, small(), strict=False)
    assert network.get_submodule("conv").weight.any() and not network.get_submodule("conv#2").weight.any()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused_with_layer_and_count(value: float) -> None:
    net = small()
    net.layer[3].blobs[0].data[3] = value
    net.layer[3].blobs[1].data[0] = value
    with pytest.raises(WeightsError, match=r"layer 'ip' \(InnerProduct\): 2.*allow_nonfinite"):
        load(SMALL, net)
    network = load(SMALL, net, allow_nonfinite=True)
    assert not np.isfinite(network.get_submodule("ip").weight[0, 3].item())


def test_large_finite_numbers_are_no_infinity() -> None:
    net = small()
    net.layer[3].blobs[0].data[3] = 3e38  # its square is none
    load(SMALL, net)


def test_weights_inside_a_text_net() -> None:
    blobs = "blobs { shape { dim: 2 dim: 1 dim: 1 dim: 1 } data: 5 data: 6 } blobs { shape { dim: 2 } data: 7 data: 8 }"
    text = SMALL.replace('type: "Convolution"', f'type: "Convolution" {blobs}')
    assert state(load(text))["conv.weight"].ravel().tolist() == [5, 6]


def test_hdf5_weights(tmp_path: Path) -> None:
    path = tmp_path / "small.caffemodel.h5"
    with h5py.File(path, "w") as file:
        for spec in small().layer:
            group = file.create_group(f"data/{spec.name}")
            for i, blob in enumerate(spec.blobs):
                group[str(i)] = np.array(blob.data, np.float32).reshape(blob.shape.dim)
    assert same(state(caffeport.load(SMALL.encode(), path)), state(load(SMALL, small())))


def test_fillers_depend_on_the_seed_alone() -> None:
    text = SMALL.replace("kernel_size: 1", "kernel_size: 1 weight_filler { type: 'gaussian' std: 1 }")
    assert same(state(load(text)), state(load(text)))
    assert not same(state(load(text)), state(load(text, seed=1)))


def test_a_scalar_blob() -> None:
    net = small()
    spec = net.layer.add(name="prelu", type="PReLU")
    spec.blobs.add().data[:] = [0.5]
    spec.blobs[0].shape.SetInParent()
    network = load(SMALL + layer("prelu", "PReLU", "ip", "ip", "prelu_param { channel_shared: true }"), net)
    assert network.get_submodule("prelu").weight.item() == 0.5


# ---- weights alone


def test_weights_alone_say_where_the_net_inside_ends(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "caffeport"):
        network = caffeport.load(small().SerializeToString())
    assert "its last layer is 'prob' (Softmax)" in caplog.text
    assert same(state(network), state(load(SMALL, small())))


def test_a_cut_between_layers_is_a_shorter_net_alone(caplog: pytest.LogCaptureFixture) -> None:
    short = small()
    del short.layer[3:]
    data = small().SerializeToString()[: short.ByteSize()]
    with caplog.at_level(logging.WARNING, "caffeport"):
        network = caffeport.load(data)
    assert "its last layer is 'relu' (ReLU)" in caplog.text
    assert network.outputs == ["conv"]


def test_swapped_arguments() -> None:
    with pytest.raises(FormatError, match="two arguments are swapped"):
        caffeport.load(small().SerializeToString(), SMALL.encode())


def test_a_net_in_place_of_weights() -> None:
    with pytest.raises(WeightsError, match="without any arrays"):
        load(SMALL, SMALL.encode())


# ---- damaged files


def test_no_cut_changes_a_weight_in_silence() -> None:
    """At every byte: an error; or the same values, once all that the net needs is there. Alone: whole layers."""
    data = small().SerializeToString()
    wanted = state(load(SMALL, data))
    short = small()
    del short.layer[4:]
    whole = {short.ByteSize(), len(data)}  # up to and with `ip`, and all
    for length in range(len(data)):
        try:
            network = load(SMALL, data[:length])
        except CaffeportError:
            assert length not in whole
        else:
            assert length in whole and same(state(network), wanted)
        try:
            alone = state(caffeport.load(data[:length]))
        except CaffeportError:
            continue
        assert all(alone[key].tobytes() == wanted[key].tobytes() for key in alone)


def test_no_flipped_bit_changes_a_weight_in_silence() -> None:
    """Each of all bits: an error; or another number, where the bit is in a number; or the same numbers, elsewhere."""
    data = small().SerializeToString()
    wanted = state(load(SMALL, data))
    numbers = np.zeros(len(data), bool)
    for spec in small().layer:
        for blob in spec.blobs:
            payload = np.array(blob.data, "<f4").tobytes()
            assert data.count(payload) == 1
            numbers[data.index(payload) : data.index(payload) + len(payload)] = True
    original = hashlib.sha256(data).digest()
    started = time.perf_counter()
    for bit in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        assert hashlib.sha256(flipped).digest() != original
        try:
            got = state(load(SMALL, bytes(flipped)))
        except CaffeportError:
            continue
        assert same(got, wanted) != numbers[bit // 8], f"bit {bit % 8} of byte {bit // 8}"
    assert time.perf_counter() - started < 120


def test_flipped_bits_of_a_file_alone_are_read_or_refused() -> None:
    data = small().SerializeToString()
    for bit in range(0, len(data) * 8, 3):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            caffeport.load(bytes(flipped))
        except CaffeportError as error:
            message = str(error)
            assert message


def test_salvage_takes_the_whole_layers(caplog: pytest.LogCaptureFixture) -> None:
    data = small().SerializeToString()
    cut = data[: len(data) - 60]  # inside of `ip`
    with pytest.raises(FormatError):
        load(SMALL, cut)
    with caplog.at_level(logging.WARNING, "caffeport"):
        network = load(SMALL, cut, salvage=True, strict=False)
    assert "ip" in caplog.text
    assert state(network)["conv.weight"].any()


NO_MODELS = {
    "empty": b"",
    "git-LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n",
    "HTML": b"<!DOCTYPE html><html></html>",
    "zip": b"PK\x03\x04" + b"\0" * 40,
    "pickle": b"\x80\x02}q\x00.",
    "zeros": b"\0" * 100,
    "0xFF": b"\xff" * 100,
    "text": b"hello\n",
}


@pytest.mark.parametrize("data", [pytest.param(data, id=name) for name, data in NO_MODELS.items()])
def test_files_of_other_kinds(data: bytes) -> None:
    for arguments in ((data,), (SMALL.encode(), data)):
        with pytest.raises(CaffeportError):
            caffeport.load(*arguments)


def test_a_folder_that_is_none_of_ours(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"caffeport\.json"):
        caffeport.load(tmp_path)
    with pytest.raises(FormatError):
        caffeport.load(tmp_path, DIGITS / "digits.caffemodel")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    convert(SMALL.encode(), small().SerializeToString(), tmp_path / "small")
    return tmp_path / "small"


ARGUMENTS = {
    "phase": "TRAIN",
    "level": 1,
    "stages": ["deploy"],
    "inputs": {"data": (5, 1, 2, 2)},
    "reshape": ["ip"],
    "crop": "aligned",
    "strict": False,
    "deploy": True,
    "salvage": True,
    "seed": 1,
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_what_a_converted_folder_cannot_do_is_refused_by_name(folder: Path, name: str) -> None:
    with pytest.raises(InputError, match=rf"small: {name} cannot be asked of a converted folder.*convert them again"):
        caffeport.load(folder, **{name: ARGUMENTS[name]})  # type: ignore[arg-type]


def test_the_defaults_may_be_given_for_a_folder(folder: Path) -> None:
    parameters = signature(loading.load).parameters
    assert {name: parameters[name].default for name in ARGUMENTS} == DEFAULTS
    caffeport.load(folder, **(DEFAULTS | {"stages": [], "inputs": {}, "reshape": {}, "allow_nonfinite": True}))  # type: ignore[arg-type]


def test_a_converted_folder_beside_weights(folder: Path) -> None:
    with pytest.raises(FormatError, match="needs no weights and no conversion"):
        caffeport.load(folder, DIGITS / "digits.caffemodel")


def test_fillers_in_place_of_weights_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "caffeport"):
        load(SMALL)
        load(INPUT + layer("relu", "ReLU", "data", "y"))  # learns nothing
    assert [record.getMessage() for record in caplog.records] == [
        "no weights were given: 2 layer(s) keep their fillers, which are untrained"
    ]


# ---- time and memory


def inner(name: str, bottom: str, top: str, outputs: int) -> str:
    return layer(name, "InnerProduct", bottom, top, f"inner_product_param {{ num_output: {outputs} }}")


GIANTS = {
    "one layer": DATA + inner("l", "data", "y", 9_000_000),
    "many layers": DATA + "".join(inner(f"l{i}", f"y{i}" if i else "data", f"y{i + 1}", 10_000) for i in range(9)),
    "Parameter": layer("l", "Parameter", "", "y", "parameter_param { shape { dim: 2000000000 } }"),
    "DummyData": layer("l", "DummyData", "", "y", "dummy_data_param { shape { dim: 2000000000 } }"),
    "LSTM": 'input: "x" input_shape { dim: 5 dim: 2 dim: 3 } input: "c" input_shape { dim: 5 dim: 2 }'
    + layer("l", "LSTM", "x c", "y", "recurrent_param { num_output: 20000 }"),
    "Embed": DATA + layer("l", "Embed", "data", "y", "embed_param { num_output: 30000 input_dim: 30000 }"),
}


@pytest.mark.parametrize("text", [pytest.param(text, id=name) for name, text in GIANTS.items()])
def test_what_no_file_holds_is_limited(text: str) -> None:
    """Four gigabytes and more that a prototxt of ten lines asks for: refused before memory is taken."""
    with pytest.raises(ShapeError, match=r"layer '\w+' .*(fillers make up|constants)"):
        load(text)


@pytest.mark.slow
def test_bad_nets_take_little_memory() -> None:
    """All of them in a process that may not take 2 GiB more than importing everything took."""
    code = """
import resource, sys
import caffeport, caffeport.store, torch.export
from tests.test_graph import DATA, FIT_NO_BLOB
from tests.test_loading import GIANTS
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (2 << 30),) * 2)
for name, text in {**GIANTS, **{key: DATA + text for key, text in FIT_NO_BLOB.items()}}.items():
    try:
        caffeport.load(text.encode())
    except caffeport.CaffeportError:
        continue
    sys.exit(f"{name} was loaded")
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=300)


# ---- beside other packages


def test_another_caffe_schema_in_the_same_process() -> None:
    """pycaffe and others register a caffe.proto in protobuf's default pool; ours is in a pool of its own."""
    code = """
from importlib import resources
from google.protobuf import descriptor_pb2, descriptor_pool
files = descriptor_pb2.FileDescriptorSet.FromString(open("caffeport/formats/caffe.binpb", "rb").read())
other = files.file[0]
other.message_type[0].field[0].name = "something_else"  # a fork's schema: the same file and package, other fields
descriptor_pool.Default().AddSerializedFile(other.SerializeToString())
import caffeport
network = caffeport.load("fixtures/digits/deploy.prototxt", "fixtures/digits/digits.caffemodel")
assert network.outputs == ["prob"]
theirs = descriptor_pool.Default().FindMessageTypeByName("caffe." + other.message_type[0].name)
assert theirs.fields[0].name == "something_else"
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=120)


def test_import_takes_under_a_tenth_of_a_second() -> None:
    code = "import time; t = time.process_time(); import caffeport; print(time.process_time() - t)"
    times = [
        float(subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True).stdout)
        for _ in range(3)
    ]
    assert min(times) < 0.1


def test_an_unknown_filler() -> None:
    with pytest.raises(UnsupportedLayer, match=r"layer 'conv' .*'bogus'"):
        load(SMALL.replace("kernel_size: 1", "kernel_size: 1 weight_filler { type: 'bogus' }"))
