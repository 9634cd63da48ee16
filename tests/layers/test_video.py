"""C3D's and P3D's layers for clips: shapes, numbers and parameters, against plain loops."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import caffeport
from caffeport.errors import ShapeError, UnsupportedLayer
from caffeport.export.onnx import export_onnx
from caffeport.export.source import export_source
from caffeport.store import convert
from tests.formats.wire_writer import message, number, packed, shape, text

CLIP = (2, 3, 5, 6, 7)


def net(layers: str, dims: tuple[int, ...] = CLIP) -> bytes:
    return f'input: "data" input_shape {{ {" ".join(f"dim: {n}" for n in dims)} }} {layers}'.encode()


def pool_c3d(version: str, **param: object) -> str:
    fields = " ".join(f"{name}: {value}" for name, value in param.items())
    if version == "v1.0":
        return f'layers {{ name: "y" type: POOLING3D bottom: "data" top: "y" pooling_param {{ {fields} }} }}'
    return f'layer {{ name: "y" type: "Pooling3D" bottom: "data" top: "y" pooling3d_param {{ {fields} }} }}'


def pool_p3d(**param: object) -> str:
    return pool_c3d("v1.1", **param)


def pooled(x: np.ndarray, average: bool, kernel: tuple[int, ...], stride: tuple[int, ...], pad: tuple[int, ...]):
    """Window by window, as the forks' CPU code does it; windows that start beyond image + pad are dropped if padded."""
    counts = []
    for i, k, s, p in zip(x.shape[2:], kernel, stride, pad, strict=True):
        n = math.ceil((i + 2 * p - k) / s) + 1
        counts.append(n - 1 if any(pad) and (n - 1) * s >= i + p else n)
    y = np.zeros((*x.shape[:2], *counts), np.float32)
    for place in itertools.product(*map(range, counts)):
        starts = [w * s - p for w, s, p in zip(place, stride, pad, strict=True)]
        ends = [min(a + k, i + p) for a, k, i, p in zip(starts, kernel, x.shape[2:], pad, strict=True)]
        inside = tuple(slice(max(a, 0), min(b, i)) for a, b, i in zip(starts, ends, x.shape[2:], strict=True))
        window = x[(..., *inside)]
        size = math.prod(b - a for a, b in zip(starts, ends, strict=True))
        y[(..., *place)] = window.sum((2, 3, 4)) / size if average else window.max((2, 3, 4))
    return y


POOLS = [  # layer, average, kernel, stride, pad
    pytest.param(
        pool_c3d("v1.0", pool="MAX", kernel_size=2, kernel_depth=1, stride=2, temporal_stride=1),
        *(False, (1, 2, 2), (1, 2, 2), (0, 0, 0)),
        id="C3D v1.0, first pooling",
    ),
    pytest.param(
        pool_c3d("v1.0", pool="MAX", kernel_size=3, kernel_depth=2, stride=2, temporal_stride=2),
        *(False, (2, 3, 3), (2, 2, 2), (0, 0, 0)),
        id="C3D v1.0, all three axes round up",
    ),
    pytest.param(
        pool_c3d("v1.1", pool="AVE", kernel_size=3, kernel_depth=3, stride=2, temporal_stride=1, pad=1),
        *(True, (3, 3, 3), (1, 2, 2), (0, 1, 1)),
        id="C3D v1.1, padded average",
    ),
    pytest.param(
        pool_p3d(pool="MAX", kernel_size=3, stride=2, kernel_l=2, stride_l=2),
        *(False, (2, 3, 3), (2, 2, 2), (0, 0, 0)),
        id="P3D",
    ),
    pytest.param(
        pool_p3d(pool="AVE", kernel_h=3, kernel_w=2, pad_h=1, pad_w=0, stride_h=2, stride_w=1, kernel_l=2, pad_l=1),
        *(True, (2, 3, 2), (1, 2, 1), (1, 1, 0)),
        id="P3D, everything its own",
    ),
    pytest.param(
        pool_p3d(pool="MAX", kernel_size=2, stride=3, pad=1, kernel_l=2, stride_l=3, pad_l=1),
        *(False, (2, 2, 2), (3, 3, 3), (1, 1, 1)),
        id="P3D, a window starting in the padding is dropped",
    ),
    pytest.param(
        pool_p3d(pool="AVE", global_pooling="true"), True, CLIP[2:], (1, 1, 1), (0, 0, 0), id="P3D, the whole clip"
    ),
]


@pytest.mark.parametrize(("layer", "average", "kernel", "stride", "pad"), POOLS)
def test_pooling(layer: str, average: bool, kernel, stride, pad) -> None:
    x = torch.randn(CLIP, generator=torch.Generator().manual_seed(0))
    network = caffeport.load(net(layer))
    y = network(x).numpy()
    np.testing.assert_allclose(y, pooled(x.numpy(), average, kernel, stride, pad), rtol=1e-5, atol=1e-6)
    assert network.graph.blobs["y"].shape == y.shape


@st.composite
def windows(draw: st.DrawFn) -> tuple[tuple[int, ...], ...]:
    """Sizes, kernel, stride and pad along three axes, as P3D accepts them."""
    axes = []
    for _ in range(3):
        kernel = draw(st.integers(1, 4))
        pad = draw(st.integers(0, kernel - 1))
        size = draw(st.integers(max(1, kernel - 2 * pad), 7))
        axes.append((size, kernel, draw(st.integers(1, kernel)), pad))
    return tuple(zip(*axes, strict=True))


@given(windows(), st.booleans())
@settings(max_examples=60)
def test_pooling_of_any_window(axes: tuple[tuple[int, ...], ...], average: bool) -> None:
    sizes, kernel, stride, pad = axes
    fields = {"pool": "AVE" if average else "MAX"}
    for name, numbers in (("kernel", kernel), ("stride", stride), ("pad", pad)):
        fields |= {f"{name}_{side}": str(n) for side, n in zip("lhw", numbers, strict=True)}
    x = torch.randn(1, 2, *sizes, generator=torch.Generator().manual_seed(0))
    y = caffeport.load(net(pool_p3d(**fields), tuple(x.shape)))(x).numpy()
    np.testing.assert_allclose(y, pooled(x.numpy(), average, kernel, stride, pad), rtol=1e-5, atol=1e-6)


CONV = "num_output: 4 kernel_size: 3 kernel_depth: 2 stride: 2 temporal_stride: 1 pad: 1 temporal_pad: 0"


@pytest.mark.parametrize(
    "layer",
    [
        f'layers {{ name: "y" type: CONVOLUTION3D bottom: "data" top: "y" convolution_param {{ {CONV} FILL }} }}',
        f'layer {{ name: "y" type: "Convolution3D" bottom: "data" top: "y" convolution3d_param {{ {CONV} FILL }} }}',
    ],
    ids=["v1.0", "v1.1"],
)
@pytest.mark.parametrize("transposed", [False, True], ids=["convolution", "deconvolution"])
def test_convolution(layer: str, transposed: bool) -> None:
    if transposed:
        layer = layer.replace("CONVOLUTION3D", "DECONVOLUTION3D").replace("Convolution3D", "Deconvolution3D")
    fillers = 'weight_filler { type: "xavier" } bias_filler { type: "uniform" } filter_group: 1'
    network = caffeport.load(net(layer.replace("FILL", fillers)))
    function = torch.nn.functional.conv_transpose3d if transposed else torch.nn.functional.conv3d
    x = torch.randn(CLIP)
    weight, bias = network.get_parameter("y.weight"), network.get_parameter("y.bias")
    assert bias.shape == (4,) and bias.abs().min() > 0
    wanted = function(x, weight, bias, stride=(1, 2, 2), padding=(0, 1, 1))
    torch.testing.assert_close(network(x), wanted)
    assert network.graph.blobs["y"].shape == tuple(wanted.shape)


def test_a_binary_file_of_v1_1_alone() -> None:
    """Its two messages have v1.0's numbering, its other ones BVLC's; a bias is (1, 1, 1, 1, N)."""
    random = np.random.default_rng(0)
    kernel, bias = random.standard_normal((4, 3, 2, 3, 3)), random.standard_normal((1, 1, 1, 1, 4))
    plain = random.standard_normal((2, 4, 1, 1, 1))
    param = [(1, 4), (3, 1), (4, 3), (6, 2), (7, 2), (8, 1), (12, 0)]  # num_output, pad, kernel_size, kernel_depth, ...
    data = message(100, text(1, "data"), text(2, "Input"), text(4, "data"), message(143, message(1, *dims(CLIP))))
    layers = [
        message(
            *(100, text(1, "c"), text(2, "Convolution3D"), text(3, "data"), text(4, "c")),
            *(message(7, packed(5, blob.ravel()), shape(*blob.shape)) for blob in (kernel, bias)),
            message(6661, *(number(*pair) for pair in param)),
        ),
        message(
            *(100, text(1, "p"), text(2, "Pooling3D"), text(3, "c"), text(4, "p")),
            message(6662, number(1, 0), number(2, 2), number(3, 2), number(5, 1), number(6, 1)),
        ),
        message(
            *(100, text(1, "q"), text(2, "Convolution"), text(3, "p"), text(4, "q")),
            message(7, packed(5, plain.ravel()), shape(*plain.shape)),
            message(106, number(1, 2), number(2, 0), number(4, 1), number(6, 2)),  # stride 2, in BVLC's numbering
        ),
    ]
    network = caffeport.load(data + b"".join(layers))
    x = torch.randn(CLIP)
    weights = [torch.from_numpy(array.astype(np.float32)) for array in (kernel, bias, plain)]
    y = torch.nn.functional.conv3d(x, weights[0], weights[1].flatten(), stride=(1, 2, 2), padding=(0, 1, 1))
    y = torch.nn.functional.max_pool3d(y, (1, 2, 2), (1, 2, 2), ceil_mode=True)
    torch.testing.assert_close(network(x), torch.nn.functional.conv3d(y, weights[2], stride=2))


def dims(sizes: tuple[int, ...]) -> list[bytes]:
    return [number(1, size) for size in sizes]


def test_batch_normalisation_of_clips() -> None:
    """P3D's BN keeps four arrays of (1, C)."""
    layer = (
        'layer { name: "y" type: "BN" bottom: "data" top: "y" '
        'bn_param { slope_filler { type: "constant" value: 2 } bias_filler { type: "constant" } frozen: true } }'
    )
    arrays = [np.array([[2.0, 3, 4]]), np.array([[1.0, 0, -1]]), np.array([[0.5, 0, 1]]), np.array([[4.0, 1, 9]])]
    blobs = [message(7, packed(5, array.ravel()), shape(*array.shape)) for array in arrays]
    network = caffeport.load(net(layer), message(100, text(1, "y"), text(2, "BN"), *blobs))
    x = torch.randn(CLIP)
    slope, bias, mean, variance = (torch.from_numpy(a.astype(np.float32)).reshape(1, 3, 1, 1, 1) for a in arrays)
    torch.testing.assert_close(network(x), (x - mean) / (variance + 1e-5).sqrt() * slope + bias)


REFUSED = [
    pytest.param(
        pool_c3d("v1.0", pool="MAX", kernel_size=3, kernel_depth=2, pad=1),
        CLIP,
        ShapeError,
        "MAX pooling",
        id="MAX, pad",
    ),
    pytest.param(
        pool_c3d("v1.0", pool="AVE", kernel_size=2, kernel_depth=1, stride=2, pad=1),
        *(CLIP, UnsupportedLayer, "starts in the padding"),
        id="a window that only C3D keeps",
    ),
    pytest.param(pool_c3d("v1.0", kernel_size=2), CLIP, ShapeError, "kernel 0 x 2 x 2", id="no depth"),
    pytest.param(pool_p3d(kernel_size=2, kernel_l=2), CLIP[:4], ShapeError, "wants 5 axes", id="a picture"),
    pytest.param(
        'layers { name: "y" type: CONVOLUTION3D bottom: "data" top: "y" '
        "convolution_param { num_output: 2 kernel_size: 1 } }",
        *(CLIP, ShapeError, "kernel_depth and temporal_stride must be given"),
        id="convolution without depth",
    ),
    pytest.param(
        'layers { name: "y" type: CONVOLUTION3D bottom: "data" top: "y" '
        "convolution_param { num_output: 2 kernel_size: 1 kernel_depth: 1 } }",
        *(CLIP[:4], ShapeError, r"wants \(N, C, L, H, W\)"),
        id="convolution of a picture",
    ),
]


@pytest.mark.parametrize(("layer", "sizes", "error", "words"), REFUSED)
def test_what_is_refused(layer: str, sizes: tuple[int, ...], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        caffeport.load(net(layer, sizes))


def test_a_clip_without_sizes_is_open_on_five_axes() -> None:
    layer = (
        'layers { name: "y" type: CONVOLUTION3D bottom: "data" top: "y" '
        "convolution_param { num_output: 4 kernel_size: 3 kernel_depth: 2 } }"
    )
    stored = message(
        *(2, text(4, "y"), number(5, 30)),
        *(message(6, *(number(i + 1, n) for i, n in enumerate(d)), packed(6, [1.0] * m)) for d, m in (
            ((4, 3, 2, 3, 3), 216), ((1, 1, 1, 1, 4), 4),
        )),
        message(10, number(1, 4), number(4, 3), number(6, 2)),
    )  # fmt: skip
    network = caffeport.load(f'input: "data" {layer}'.encode(), stored)
    assert network.inputs == {"data": (None,) * 5}
    assert network(torch.ones(CLIP))[0, 0, 0, 0, 0] == 3 * 2 * 3 * 3 + 1


def test_a_converted_folder_holds_clips_too(tmp_path) -> None:
    layers = (
        f'layers {{ name: "c" type: CONVOLUTION3D bottom: "data" top: "c" convolution_param {{ {CONV} '
        'weight_filler { type: "xavier" } } }'
        'layers { name: "p" type: POOLING3D bottom: "c" top: "p" '
        "pooling_param { pool: MAX kernel_size: 2 kernel_depth: 1 stride: 2 temporal_stride: 1 } }"
    )
    done = convert(net(layers), None, tmp_path / "clips")
    x = torch.randn(CLIP)
    assert torch.equal(caffeport.load(tmp_path / "clips")(x), done.network(x))


def test_onnx_and_source_give_the_same(tmp_path) -> None:
    layers = (
        'layer { name: "c" type: "Convolution3D" bottom: "data" top: "c" convolution3d_param { num_output: 3 '
        'kernel_size: 3 kernel_depth: 2 pad: 1 weight_filler { type: "xavier" } } }'
        'layer { name: "p" type: "Pooling3D" bottom: "c" top: "p" pooling3d_param { kernel_size: 2 stride: 2 '
        "kernel_depth: 2 temporal_stride: 2 } }"
        'layer { name: "q" type: "Pooling3D" bottom: "p" top: "q" pooling3d_param { pool: AVE kernel_size: 2 '
        "kernel_depth: 2 temporal_stride: 2 } }"
    )
    network = caffeport.load(net(layers))
    x = torch.randn(CLIP)

    export_source(network, tmp_path / "clip.py", prove=False)
    written: dict[str, object] = {}
    exec((tmp_path / "clip.py").read_text(encoding="utf-8"), written)
    (cls,) = (value for value in written.values() if isinstance(value, type) and "from_pretrained" in vars(value))
    module = cls()
    module.load_state_dict(network.state_dict())
    assert torch.equal(module(x), network(x))

    onnxruntime = pytest.importorskip("onnxruntime")
    export_onnx(network, tmp_path / "clip.onnx", prove=False)
    (y,) = onnxruntime.InferenceSession(tmp_path / "clip.onnx").run(None, {"data": x.numpy()})
    np.testing.assert_allclose(y, network(x).detach().numpy(), rtol=1e-4, atol=1e-6)
