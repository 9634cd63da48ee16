"""Wiring: which value each layer reads, shapes, sharing, and nets that cannot be wired."""

import time

import pytest

from caffeport import CaffeportError, FormatError, InputError, ShapeError, UnsupportedLayer
from caffeport.description import describe
from caffeport.graph import Graph

DATA = 'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 4 dim: 5 } } }\n'


def layer(name: str, type_: str, bottoms: str, tops: str, rest: str = "") -> str:
    """A layer as text; bottoms and tops are names with spaces between."""
    names = [f'bottom: "{bottom}"' for bottom in bottoms.split()] + [f'top: "{top}"' for top in tops.split()]
    return f'layer {{ name: "{name}" type: "{type_}" {" ".join(names)} {rest} }}\n'


def graph(*layers: str, inputs: dict[str, tuple[int | None, ...]] | None = None) -> Graph:
    return describe((DATA + "".join(layers)).encode(), inputs=inputs).graph


def bottoms(built: Graph, key: str) -> list[str]:
    """What a layer reads, each as the writer's key."""
    return [operand.value.key for operand in next(step for step in built.steps if step.key == key).bottoms]


# ---- values and names


def test_values_are_named_by_their_writer_and_blobs_by_their_last() -> None:
    built = graph(
        layer("ip", "InnerProduct", "data", "x", "inner_product_param { num_output: 7 }"), layer("r", "ReLU", "x", "x")
    )
    assert [top.key for step in built.steps for top in step.tops] == ["ip::x", "r::x"]
    assert built.blobs["x"].value.key == "r::x"
    assert built.blobs["x"].shape == (2, 7)
    assert built.outputs == ["x"]
    assert [value.key for value in built.inputs] == ["data::data"]


def test_outputs_are_what_no_layer_reads_sorted() -> None:
    built = graph(layer("b", "TanH", "data", "zebra"), layer("a", "AbsVal", "data", "ape"))
    assert built.outputs == ["ape", "zebra"]


def test_the_top_that_caffe_invents_for_a_loss_is_no_blob() -> None:
    built = graph(layer("loss", "EuclideanLoss", "data data", ""))
    assert built.outputs == []
    assert [top.key for top in built.steps[0].tops] == ["loss::(automatic)"]
    assert "(automatic)" not in built.blobs


def test_repeated_and_empty_layer_names() -> None:
    """As in Caffe they build; the first one of a name takes its weights."""
    names = [("", "a"), ("x", "b"), ("x", "c"), ("", "d"), ("x", "e")]
    built = graph(*(layer(name, "TanH", "data", top) for name, top in names))
    assert [step.key for step in built.steps] == ["", "x", "x#2", "#2", "x#3"]
    assert built.steps[2].tops[0].key == "x#2::c"


def test_a_name_that_looks_like_a_repeat() -> None:
    built = graph(*(layer(name, "TanH", "data", top) for name, top in [("x#2", "a"), ("x", "b"), ("x", "c")]))
    assert [step.key for step in built.steps] == ["x#2", "x", "x#3"]


# ---- shared memory


def test_in_place_after_a_view_changes_what_later_readers_of_the_view_get() -> None:
    """Flatten shares its bottom's memory: a ReLU on the flat name changes the other name too."""
    built = graph(
        layer("tanh", "TanH", "data", "x"),
        layer("flat", "Flatten", "x", "y"),
        layer("relu", "ReLU", "y", "y"),
    )
    x = built.blobs["x"]
    assert x.value.key == "relu::y"
    assert x.like is not None and x.like.key == "tanh::x" and x.shape == (2, 3, 4, 5)


@pytest.mark.parametrize(
    "view",
    [
        layer("view", "Reshape", "x", "y", "reshape_param { shape { dim: 0 dim: -1 } }"),
        layer("view", "Flatten", "x", "y"),
        layer("view", "Split", "x", "y"),
    ],
)
def test_layers_that_share_memory(view: str) -> None:
    built = graph(layer("tanh", "TanH", "data", "x"), view, layer("relu", "ReLU", "y", "y"))
    assert built.blobs["x"].value.key == "relu::y"


def test_a_copy_does_not_share_memory() -> None:
    built = graph(layer("tanh", "TanH", "data", "x"), layer("abs", "AbsVal", "x", "y"), layer("relu", "ReLU", "y", "y"))
    assert built.blobs["x"].value.key == "tanh::x"


def test_views_of_views_lead_to_one_memory() -> None:
    built = graph(
        layer("tanh", "TanH", "data", "a"),
        layer("s", "Split", "a", "b c"),
        layer("f", "Flatten", "b", "d"),
        layer("relu", "ReLU", "d", "d"),
        layer("later", "AbsVal", "c", "e"),
    )
    assert bottoms(built, "later") == ["relu::d"]
    assert built.steps[-1].bottoms[0].shape == (2, 3, 4, 5)


def test_in_place_on_a_blob_that_another_layer_reads_is_refused() -> None:
    """Caffe puts a Split between, and then the top has a name that is taken."""
    with pytest.raises(ShapeError, match=r"layer 'r' .*in place on 'x'.*'abs'"):
        graph(layer("t", "TanH", "data", "x"), layer("abs", "AbsVal", "x", "y"), layer("r", "ReLU", "x", "x"))


def test_in_place_on_a_blob_that_was_split_is_refused_even_after_its_memory_changed() -> None:
    with pytest.raises(ShapeError, match=r"layer 'soft' .*in place on 'x'.*'split'"):
        graph(
            layer("t", "TanH", "data", "x"),
            layer("split", "Split", "x", "y z"),
            layer("r", "ReLU", "y", "y"),
            layer("soft", "Softmax", "x", "x"),
        )


def test_in_place_on_a_blob_that_the_layer_reads_twice_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"layer 'sum' .*in place on 'x'.*twice"):
        graph(layer("t", "TanH", "data", "x"), layer("sum", "Eltwise", "x x", "x"))


def test_a_layer_that_cannot_work_in_place() -> None:
    with pytest.raises(ShapeError, match=r"layer 'c' \(Convolution\).*own bottom 'data'"):
        graph(layer("c", "Convolution", "data", "data", "convolution_param { num_output: 3 kernel_size: 1 }"))


# ---- nets that cannot be wired


def test_a_missing_bottom_says_how_to_feed_it() -> None:
    with pytest.raises(
        ShapeError, match=r"layer 'r' \(ReLU\): reads blob 'nope', which no layer writes.*--input nope="
    ):
        graph(layer("r", "ReLU", "nope", "y"))


def test_a_cycle_is_a_blob_that_only_a_later_layer_writes() -> None:
    with pytest.raises(ShapeError, match=r"layer 'a' .*reads blob 'y'.*later layer, 'b'.*cycle"):
        graph(layer("a", "Eltwise", "data y", "x"), layer("b", "TanH", "x", "y"))


@pytest.mark.parametrize(
    "twice",
    [
        layer("a", "TanH", "data", "x") + layer("b", "AbsVal", "data", "x"),
        layer("a", "Split", "data", "x x"),
        layer("a", "TanH", "data", "x") + layer("b", "Eltwise", "data x", "x"),  # in place is the first bottom's right
    ],
)
def test_a_top_written_twice(twice: str) -> None:
    with pytest.raises(ShapeError, match=r"writes .*'x'"):
        graph(twice)


def test_an_input_declared_twice() -> None:
    with pytest.raises(FormatError, match="input 'data' is declared twice"):
        graph(DATA.replace('name: "data"', 'name: "other"'))


def test_every_unknown_type_is_named_at_once() -> None:
    with pytest.raises(UnsupportedLayer) as error:
        graph(layer("a", "Convolutoin", "data", "x"), layer("b", "FooBar", "x", "y"))
    assert "'a' (Convolutoin)" in str(error.value) and "did you mean 'Convolution'" in str(error.value)
    assert "'b' (FooBar)" in str(error.value)


def test_every_wrong_shape_is_named_at_once_but_not_what_follows_from_it() -> None:
    crop = "crop_param { axis: 9 }"
    with pytest.raises(ShapeError) as error:
        graph(
            layer("bad1", "Crop", "data data", "x", crop),
            layer("after", "ReLU", "x", "y"),
            layer("bad2", "Crop", "data data", "z", crop),
        )
    assert "'bad1'" in str(error.value) and "'bad2'" in str(error.value) and "'after'" not in str(error.value)


# ---- inputs of the caller's


def test_given_shapes_go_before_declared_ones() -> None:
    built = graph(layer("t", "TanH", "data", "x"), inputs={"data": (1, 3, None, 7)})
    assert built.blobs["x"].shape == (1, 3, None, 7)


def test_a_blob_that_nobody_writes_becomes_an_input_when_its_shape_is_given() -> None:
    built = graph(layer("e", "Concat", "data more", "x"), inputs={"more": (2, 9, 4, 5)})
    assert built.blobs["x"].shape == (2, 12, 4, 5)
    assert [value.blob for value in built.inputs] == ["more", "data"]


# ---- shared parameters


INNER = "inner_product_param { num_output: 60 bias_term: false }"
FLAT = layer("flat", "Flatten", "data", "flat")


def test_parameters_shared_by_name_have_one_owner() -> None:
    built = graph(
        FLAT,
        layer("one", "InnerProduct", "flat", "x", 'param { name: "w" }' + INNER),
        layer("two", "InnerProduct", "x", "y", 'param { name: "w" }' + INNER),
    )
    assert [step.owners for step in built.steps[1:]] == [(("one", 0),), (("one", 0),)]


@pytest.mark.parametrize("mode, fits", [("STRICT", False), ("PERMISSIVE", True)])
def test_sharing_with_another_shape_needs_permissive_and_equal_counts(mode: str, fits: bool) -> None:
    conv = "convolution_param { num_output: 60 kernel_h: 4 kernel_w: 5 bias_term: false }"
    layers = [
        FLAT,
        layer("one", "InnerProduct", "flat", "x", 'param { name: "w" }' + INNER),
        layer("two", "Convolution", "data", "y", f'param {{ name: "w" share_mode: {mode} }}' + conv),
    ]
    if fits:
        assert graph(*layers).steps[2].owners == (("one", 0),)
    else:
        with pytest.raises(ShapeError, match=r"layer 'two' .*shares parameter 'w' with layer 'one'.*60 x 60"):
            graph(*layers)


def test_more_param_entries_than_arrays() -> None:
    with pytest.raises(ShapeError, match=r"layer 'one' .*2 param entries but 1 learned"):
        graph(FLAT, layer("one", "InnerProduct", "flat", "x", "param { } param { }" + INNER))


# ---- hostile sizes

FIT_NO_BLOB = {
    "input": 'input: "big" input_shape { dim: 65536 dim: 65536 }',
    "input beyond 64 bits": f'input: "big" input_shape {{ dim: {2**62} dim: {2**62} }}',
    "InnerProduct": layer("l", "InnerProduct", "data", "y", "inner_product_param { num_output: 4000000000 }"),
    "learned array": layer("l", "InnerProduct", "data", "y", "inner_product_param { num_output: 2147483647 }"),
    "Convolution": layer(
        "l", "Convolution", "data", "y", "convolution_param { num_output: 2147483647 kernel_size: 3 }"
    ),
    "kernel": layer(
        "l", "Convolution", "data", "y", "convolution_param { num_output: 2 kernel_size: 99999 pad: 99999 }"
    ),
    "pad": layer("l", "Convolution", "data", "y", "convolution_param { num_output: 2 kernel_size: 3 pad: 2000000000 }"),
    "stride": layer(
        "l", "Deconvolution", "data", "y", "convolution_param { num_output: 2 kernel_size: 3 stride: 99999 }"
    ),
    "pooling pad": layer("l", "Pooling", "data", "y", "pooling_param { kernel_size: 4000000000 pad: 3999999999 }"),
    "Tile": layer("l", "Tile", "data", "y", "tile_param { axis: 1 tiles: 1000000000 }"),
    "Interp": layer("l", "Interp", "data", "y", "interp_param { zoom_factor: 2000000000 }"),
    "Upsample": layer("l", "Upsample", "data", "y", "upsample_param { scale: 2000000000 }"),
    "Im2col": layer("l", "Im2col", "data", "y", "convolution_param { kernel_size: 4000 pad: 4000 }"),
    "Embed": layer("l", "Embed", "data", "y", "embed_param { num_output: 2000000000 input_dim: 2000000000 }"),
    "SPP": layer("l", "SPP", "data", "y", "spp_param { pyramid_height: 4000000000 }"),
    "MemoryData": layer(
        "l", "MemoryData", "", "y", "memory_data_param { batch_size: 9 channels: 4000000000 height: 1 width: 1 }"
    ),
    "axes": layer("l", "Reshape", "data", "y", f"reshape_param {{ shape {{ {'dim: 1 ' * 40} dim: -1 }} }}"),
    "DummyData": layer("l", "DummyData", "", "y", "dummy_data_param { shape { dim: 2000000000 } }"),
    "many DummyData": "".join(
        layer(f"l{i}", "DummyData", "", f"y{i}", "dummy_data_param { shape { dim: 90000000 } }") for i in range(9)
    ),
}


@pytest.mark.parametrize("text", [pytest.param(text, id=name) for name, text in FIT_NO_BLOB.items()])
def test_what_no_blob_can_hold_is_refused_when_wired(text: str) -> None:
    """More than 2^31 - 1 values in one blob: Caffe aborts. No memory is taken before this."""
    with pytest.raises(ShapeError):
        graph(text)


@pytest.mark.parametrize("size", [0, -2, -(2**31)])
def test_inputs_without_values(size: int) -> None:
    with pytest.raises(InputError, match="below 1"):
        describe(f'input: "x" input_shape {{ dim: 2 dim: {size} }} {layer("t", "TanH", "x", "y")}'.encode())


LONG = {
    "layers of one name": "".join(layer("x", "ReLU", "data", "data") for _ in range(4000)),
    "a chain of views": "".join(layer(f"x{i}", "Flatten", f"y{i - 1}" if i else "data", f"y{i}") for i in range(4000)),
    "a blob split 20,000 times": layer("s", "Split", "data", " ".join(f"y{i}" for i in range(20_000))),
    "inputs": "".join(f'layer {{ name: "i{i}" type: "Data" top: "i{i}" }}' for i in range(4000)),
    "missing bottoms": "".join(layer(f"x{i}", "ReLU", f"missing{i}", f"y{i}") for i in range(4000)),
    "unknown types": "".join(layer(f"x{i}", f"Unknown{i}", "data", f"y{i}") for i in range(1000)),
}


@pytest.mark.parametrize("text", [pytest.param(text, id=name) for name, text in LONG.items()])
def test_time_grows_with_the_net_and_not_with_its_square(text: str) -> None:
    begin = time.process_time()
    try:
        graph(text)
    except CaffeportError as error:
        message = str(error)
        assert len(message) < 200_000
    assert time.process_time() - begin < 10  # seconds; about one here, minutes where the square counts
