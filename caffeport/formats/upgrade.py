"""Older nets in today's form: V0 to V1 to V2, as Caffe's upgrade_proto does it.

V0  `layers { layer { type: "conv" ... } }`, 2013   V0LayerParameter: one flat message for all types
V1  `layers { type: CONVOLUTION ... }`, 2014        V1LayerParameter: types are an enum
V2  `layer { type: "Convolution" ... }`             LayerParameter: types are strings

Source: BVLC Caffe 1.0, src/caffe/util/upgrade_proto.cpp; for the forks' V1 types their caffe.proto.
"""

from collections.abc import Iterable

from ..errors import FormatError
from .schema import LayerParameter, Message, NetParameter, V1LayerParameter

# V1's name: V2's. What is not here keeps its name, and the net's builder says whether anybody knows it.
V1_TYPES = {
    "NONE": "",
    "ABSVAL": "AbsVal",
    "ACCURACY": "Accuracy",
    "ARGMAX": "ArgMax",
    "BNLL": "BNLL",
    "CONCAT": "Concat",
    "CONTRASTIVE_LOSS": "ContrastiveLoss",
    "CONVOLUTION": "Convolution",
    "DATA": "Data",
    "DECONVOLUTION": "Deconvolution",
    "DROPOUT": "Dropout",
    "DUMMY_DATA": "DummyData",
    "ELTWISE": "Eltwise",
    "EUCLIDEAN_LOSS": "EuclideanLoss",
    "EXP": "Exp",
    "FLATTEN": "Flatten",
    "HDF5_DATA": "HDF5Data",
    "HDF5_OUTPUT": "HDF5Output",
    "HINGE_LOSS": "HingeLoss",
    "IM2COL": "Im2col",
    "IMAGE_DATA": "ImageData",
    "INFOGAIN_LOSS": "InfogainLoss",
    "INNER_PRODUCT": "InnerProduct",
    "LRN": "LRN",
    "MEMORY_DATA": "MemoryData",
    "MULTINOMIAL_LOGISTIC_LOSS": "MultinomialLogisticLoss",
    "MVN": "MVN",
    "POOLING": "Pooling",
    "POWER": "Power",
    "RELU": "ReLU",
    "SIGMOID": "Sigmoid",
    "SIGMOID_CROSS_ENTROPY_LOSS": "SigmoidCrossEntropyLoss",
    "SILENCE": "Silence",
    "SLICE": "Slice",
    "SOFTMAX": "Softmax",
    "SOFTMAX_LOSS": "SoftmaxWithLoss",
    "SPLIT": "Split",
    "TANH": "TanH",
    "THRESHOLD": "Threshold",
    "WINDOW_DATA": "WindowData",
    # Forks: DeepLab v1, DeconvNet, kendryte, eric612's.
    "IMAGE_SEG_DATA": "ImageSegData",
    "INTERP": "Interp",
    "PADDING": "Padding",
    "RELU6": "ReLU6",
    "REVERSE": "Reverse",
    "UNPOOLING": "Unpooling",
}

# Numbers beyond BVLC's enum mean what the layer's own parameters say, else what the net's fork says.
_TYPE_OF_PARAM = {
    "bn_param": "BN",
    "interp_param": "INTERP",
    "padding_param": "PADDING",
    "relu6_param": "RELU6",
    "reverse_param": "REVERSE",
    "unpooling_param": "UNPOOLING",
}
_DEEPLAB1 = {
    40: "SEG_ACCURACY",
    41: "INTERP",
    42: "PADDING",
    43: "MAT_WRITE",
    44: "MAT_READ",
    45: "DENSE_CRF",
    46: "DOMINANT_CHANNEL",
    47: "BIAS_CHANNEL",
    48: "UNIQUE_LABEL",
    49: "CENSOR_LABEL",
    50: "ADAPTIVE_BIAS_CHANNEL",
    51: "CHANNEL_AGGREGATOR",
    52: "IGNORE_OVERLAY",
    53: "HISTOGRAM",
}
_DECONVNET = {
    40: "CROP",
    41: "ELTWISE_ACCURACY",
    42: "UNPOOLING",
    43: "BN",
    44: "RED_SOFTMAX_LOSS",
    45: "RED_ACCURACY",
    46: "IMAGE_SEG_DATA",
    47: "WINDOW_SEG_DATA",
    48: "WINDOW_INST_SEG_DATA",
    49: "BIN_ACCURACY",
    50: "WINDOW_CLS_DATA",
    51: "WINDOW_SEG_BINARY",
    52: "SELECT_SEG_BINARY",
    53: "DROPOUT_CHANNEL",
}
_ANY_FORK = {61: "RELU6"}

V0_TYPES = {
    "accuracy": "ACCURACY",
    "bnll": "BNLL",
    "concat": "CONCAT",
    "conv": "CONVOLUTION",
    "data": "DATA",
    "dropout": "DROPOUT",
    "euclidean_loss": "EUCLIDEAN_LOSS",
    "flatten": "FLATTEN",
    "hdf5_data": "HDF5_DATA",
    "hdf5_output": "HDF5_OUTPUT",
    "im2col": "IM2COL",
    "images": "IMAGE_DATA",
    "infogain_loss": "INFOGAIN_LOSS",
    "innerproduct": "INNER_PRODUCT",
    "lrn": "LRN",
    "multinomial_logistic_loss": "MULTINOMIAL_LOGISTIC_LOSS",
    "pool": "POOLING",
    "relu": "RELU",
    "sigmoid": "SIGMOID",
    "softmax": "SOFTMAX",
    "softmax_loss": "SOFTMAX_LOSS",
    "split": "SPLIT",
    "tanh": "TANH",
    "window_data": "WINDOW_DATA",
}

_V0_PARAMS = {  # the parameter message of a V0 type
    "concat": "concat_param",
    "conv": "convolution_param",
    "data": "data_param",
    "dropout": "dropout_param",
    "hdf5_data": "hdf5_data_param",
    "images": "image_data_param",
    "infogain_loss": "infogain_loss_param",
    "innerproduct": "inner_product_param",
    "lrn": "lrn_param",
    "pool": "pooling_param",
    "window_data": "window_data_param",
}
_V0_FIELDS = {  # V0 field: (its name in the parameter message, the V0 types that have it)
    "num_output": ("num_output", ("conv", "innerproduct")),
    "biasterm": ("bias_term", ("conv", "innerproduct")),
    "weight_filler": ("weight_filler", ("conv", "innerproduct")),
    "bias_filler": ("bias_filler", ("conv", "innerproduct")),
    "pad": ("pad", ("conv", "pool")),
    "kernelsize": ("kernel_size", ("conv", "pool")),
    "stride": ("stride", ("conv", "pool")),
    "group": ("group", ("conv",)),
    "pool": ("pool", ("pool",)),
    "dropout_ratio": ("dropout_ratio", ("dropout",)),
    "local_size": ("local_size", ("lrn",)),
    "alpha": ("alpha", ("lrn",)),
    "beta": ("beta", ("lrn",)),
    "k": ("k", ("lrn",)),
    "source": ("source", ("data", "hdf5_data", "images", "window_data", "infogain_loss")),
    "batchsize": ("batch_size", ("data", "hdf5_data", "images", "window_data")),
    "rand_skip": ("rand_skip", ("data", "images")),
    "shuffle_images": ("shuffle", ("images",)),
    "new_height": ("new_height", ("images",)),
    "new_width": ("new_width", ("images",)),
    "concat_dim": ("concat_dim", ("concat",)),
    "det_fg_threshold": ("fg_threshold", ("window_data",)),
    "det_bg_threshold": ("bg_threshold", ("window_data",)),
    "det_fg_fraction": ("fg_fraction", ("window_data",)),
    "det_context_pad": ("context_pad", ("window_data",)),
    "det_crop_mode": ("crop_mode", ("window_data",)),
}
_V0_TRANSFORM = {"scale": "scale", "meanfile": "mean_file", "cropsize": "crop_size", "mirror": "mirror"}
_V0_MOVED = {"name", "type", "blobs", "blobs_lr", "weight_decay"}
_V0_NET_FIELDS = {"name", "layers", "input", "input_dim", "force_backward"}

_TRANSFORM_FIELDS = ("scale", "mean_file", "crop_size", "mirror")
_DATA_PARAMS = {"DATA": "data_param", "IMAGE_DATA": "image_data_param", "WINDOW_DATA": "window_data_param"}

# V1 fields that V2 has under another name; all others keep theirs.
_V1_MOVED = {"layer", "type", "type_name", "blobs_lr", "weight_decay", "param", "blob_share_mode"}


def upgrade(net: Message, path: str) -> tuple[Message, str, list[str]]:
    """The net in V2 form, what it was ("V0", "V1" or "V2"), and warnings.

    A V2 net is changed in place. `path` names the file in messages.
    Raises FormatError for what real Caffe aborts on or reads past the end of: `layer` and `layers` in one net,
    a V0 padding layer whose reader cannot pad, too few numbers in input_dim or messages in input_shape.
    """
    form = "V2"
    warnings: list[str] = []
    if net.layers and net.layer:
        raise FormatError(
            f"{path}: the net has both `layers` (V1; {len(net.layers)}) and `layer` (V2; {len(net.layer)}); "
            "Caffe refuses a mixture: write all of them in one form"
        )
    if net.layers:
        form = "V1"
        if any(layer.HasField("layer") for layer in net.layers):
            form = "V0"
            net = _v0_to_v1(net, path, warnings)
        net = _v1_to_v2(net)
    _upgrade_inputs(net, path, warnings)
    for layer in net.layer:
        if layer.type == "BatchNorm" and len(layer.param) == 3:
            # Statistics are not learned; old files give them learning rates.
            for param in layer.param:
                param.lr_mult = param.decay_mult = 0
    return net, form, warnings


def _v0_to_v1(net: Message, path: str, warnings: list[str]) -> Message:
    """Also drops the net's fields that V0 did not have, as Caffe does."""
    upgraded = NetParameter(input=net.input, input_dim=net.input_dim)
    _copy_fields(net, upgraded, ("name", "force_backward"))
    lost = [field.name for field, _ in net.ListFields() if field.name not in _V0_NET_FIELDS]
    if lost:
        warnings.append(f"{path}: {', '.join(lost)} ignored, since the layers are in V0 form")
    for layer in _fold_padding(net, path):
        _v0_layer(layer, upgraded.layers.add(), path, warnings)
    return upgraded


def _fold_padding(net: Message, path: str) -> list[Message]:
    """The layers without V0's padding layers; those that read one get its pad and its bottom."""
    kept = []
    producers: dict[str, Message] = {}
    for layer in net.layers:
        if layer.layer.type != "padding":
            kept.append(layer)
        for index, bottom in enumerate(layer.bottom):
            source = producers.get(bottom)
            if source is None or source.layer.type != "padding":
                continue
            if layer.layer.type not in ("conv", "pool") or len(layer.bottom) != 1:
                raise FormatError(
                    f"{path}: layer {layer.layer.name!r} ({layer.layer.type}) reads the padding layer "
                    f"{source.layer.name!r}; expected conv or pool with one bottom"
                )
            if len(source.bottom) != 1 or len(source.top) != 1:
                raise FormatError(
                    f"{path}: padding layer {source.layer.name!r} has {len(source.bottom)} bottoms "
                    f"and {len(source.top)} tops, expected one of each"
                )
            layer.layer.pad = source.layer.pad
            layer.bottom[index] = source.bottom[0]
        producers.update(dict.fromkeys(layer.top, layer))
    return kept


def _v0_layer(old: Message, new: Message, path: str, warnings: list[str]) -> None:
    if not old.HasField("layer"):
        raise FormatError(
            f"{path}: layer {old.name!r} is in V1 form, others are in V0 form (`layers {{ layer {{`); "
            "Caffe refuses a mixture: write all of them in one form"
        )
    flat = old.layer
    new.bottom.extend(old.bottom)
    new.top.extend(old.top)
    _copy_fields(flat, new, ("name", "blobs", "blobs_lr", "weight_decay"))
    if flat.type in V0_TYPES:
        new.type = V1LayerParameter.LayerType.Value(V0_TYPES[flat.type])
    else:
        new.type_name = flat.type
    for field, value in flat.ListFields():
        name = field.name
        if name in _V0_MOVED:
            continue
        if name in _V0_TRANSFORM:
            _assign(new.transform_param, _V0_TRANSFORM[name], value)
        elif name == "hdf5_output_param" and flat.type == "hdf5_output":
            new.hdf5_output_param.CopyFrom(value)
        elif name in _V0_FIELDS and flat.type in _V0_FIELDS[name][1]:
            _assign(getattr(new, _V0_PARAMS[flat.type]), _V0_FIELDS[name][0], value)
        else:
            warnings.append(f"{path}: layer {flat.name!r}: {name} ignored, since V0 type {flat.type!r} has none")


def _v1_to_v2(net: Message) -> Message:
    fork_types = _fork_types(net.layers)
    upgraded = NetParameter()
    _copy_fields(net, upgraded, [field.name for field, _ in net.ListFields() if field.name != "layers"])
    for old in net.layers:
        new = upgraded.layer.add()
        name = _v1_type_name(old, fork_types)
        if name == "CROP" and len(old.bottom) == 2:  # FCN's; DeconvNet's CROP is another layer
            new.type = "Crop"
        else:
            new.type = V1_TYPES.get(name, name)
        _copy_fields(old, new, [field.name for field, _ in old.ListFields() if field.name not in _V1_MOVED])
        _move_transformation(new, _DATA_PARAMS.get(name))
        for index, param_name in enumerate(old.param):
            _param(new, index).name = param_name
        for index, mode in enumerate(old.blob_share_mode):
            _param(new, index).share_mode = mode
        for index, rate in enumerate(old.blobs_lr):
            _param(new, index).lr_mult = rate
        for index, decay in enumerate(old.weight_decay):
            _param(new, index).decay_mult = decay
    return upgraded


def _fork_types(layers: Iterable[Message]) -> dict[int, str]:
    """What the numbers beyond BVLC's enum mean in this net, by the layers that tell the forks apart."""
    for layer in layers:
        if layer.HasField("interp_param") or layer.convolution_param.HasField("hole") or _is_segmentation_data(layer):
            return _DEEPLAB1
        if layer.HasField("unpooling_param") or layer.HasField("bn_param"):
            return _DECONVNET
    return {}


def _is_segmentation_data(layer: Message) -> bool:
    """Number 39 is BVLC's DECONVOLUTION, but DeepLab's IMAGE_SEG_DATA where nothing is there to convolve."""
    deconvolution = layer.type == V1LayerParameter.DECONVOLUTION
    return deconvolution and not (layer.bottom or layer.blobs or layer.HasField("convolution_param"))


def _v1_type_name(layer: Message, fork_types: dict[int, str]) -> str:
    """V1's name of the layer's type; type_name holds a name from a text file, or digits."""
    if not layer.HasField("type_name"):
        if _is_segmentation_data(layer):
            return "IMAGE_SEG_DATA"
        return str(V1LayerParameter.LayerType.Name(layer.type))
    name = str(layer.type_name)
    if not name.isdecimal():
        return name
    for param, type_ in _TYPE_OF_PARAM.items():
        if layer.HasField(param):
            return type_
    number = int(name)
    return fork_types.get(number) or _ANY_FORK.get(number) or name


def _move_transformation(layer: Message, data_param: str | None) -> None:
    """Old data layers hold their transformation in their own parameters. Only V1 files are treated so."""
    if data_param is None:
        return
    old = getattr(layer, data_param)
    for name in _TRANSFORM_FIELDS:
        if old.HasField(name):
            setattr(layer.transform_param, name, getattr(old, name))
            old.ClearField(name)


def _upgrade_inputs(net: Message, path: str, warnings: list[str]) -> None:
    """The net's input fields become a first layer "input". Without sizes it has no shape: an open input."""
    count = len(net.input)
    if count:
        layer = LayerParameter(name="input", type="Input", top=net.input)
        if net.input_shape:
            given, wanted, field = len(net.input_shape), count, "input_shape"
            layer.input_param.shape.extend(net.input_shape[:count])
        elif net.input_dim:
            axes = 5 if any(layer.type == "CONVOLUTION3D" for layer in net.layer) else 4  # C3D's pictures have a length
            given, wanted, field = len(net.input_dim), axes * count, "input_dim"
            for start in range(0, wanted, axes):
                layer.input_param.shape.add(dim=net.input_dim[start : start + axes])
        else:
            given, wanted, field = 0, 0, ""
        if given < wanted:
            raise FormatError(f"{path}: {field} is given {given} times, expected {wanted} for {_inputs(net.input)}")
        if given > wanted:
            warnings.append(f"{path}: {field} is given {given} times, {wanted} used for {_inputs(net.input)}")
        layers = [layer, *net.layer]
        del net.layer[:]
        net.layer.extend(layers)
    for name in ("input", "input_shape", "input_dim"):
        net.ClearField(name)


def _inputs(names: Iterable[str]) -> str:
    names = list(names)
    return f"input {names[0]!r}" if len(names) == 1 else f"{len(names)} inputs"


def _param(layer: Message, index: int) -> Message:
    while len(layer.param) <= index:
        layer.param.add()
    return layer.param[index]


def _copy_fields(old: Message, new: Message, names: Iterable[str]) -> None:
    """Copy the fields that are set in `old` to those of the same name in `new`, which may be of another class."""
    wanted = set(names)
    for field, value in old.ListFields():
        if field.name in wanted:
            _assign(new, field.name, value)


def _assign(message: Message, name: str, value: Message) -> None:
    """Set field `name`, whatever its kind; a single value becomes the one value of a repeated field."""
    field = message.DESCRIPTOR.fields_by_name[name]
    if field.is_repeated:
        getattr(message, name).extend(value if not isinstance(value, (int, float)) else [value])
    elif field.message_type is not None:
        getattr(message, name).CopyFrom(value)
    else:
        setattr(message, name, value)
