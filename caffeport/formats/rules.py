"""Which layers of a net count: phase, level and stage rules, and what a deploy net keeps of a training net.

All of it works on V2 nets and on names and types only: no shapes, no layer classes.
Source: BVLC Caffe 1.0, src/caffe/net.cpp (FilterNet, StateMeetsRule).
"""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from ..errors import FormatError, InputError
from .schema import LayerParameter, Message, NetParameter, message_class

NetState = message_class("NetState")

PHASES = ("TRAIN", "TEST")


def filter_net(net: Message, *, phase: str = "TEST", level: int = 0, stages: Iterable[str] = ()) -> Message:
    """A new net with those layers whose include and exclude rules are met.

    `phase` and `level` replace those of the net's own state; `stages` are added to its stages, as in Caffe.
    Raises FormatError where a layer has both kinds of rules; InputError for an unknown phase, and where the rules
    leave no layer, or none that computes, with the phases and stages that the net's rules name.
    """
    if phase not in PHASES:
        raise InputError(f"phase is {phase!r}, expected TRAIN or TEST")
    if isinstance(stages, str):
        raise InputError(f"stages is the string {stages!r}, expected a list of strings")
    state = NetState(phase=phase, level=level, stage=[*net.state.stage, *stages])
    kept = [layer for layer in net.layer if _is_kept(layer, state)]
    had_work, has_work = (any(layer.bottom for layer in layers) for layers in (net.layer, kept))
    if net.layer and (not kept or (had_work and not has_work)):
        what = "no layer that computes anything" if kept else "no layer"
        raise InputError(f"phase {phase}, level {level}, stages {list(state.stage)} leave {what}; {rules_hint(net)}")
    filtered = NetParameter(state=state)
    filtered.layer.extend(kept)
    for name in ("name", "force_backward", "debug_info"):
        if net.HasField(name):
            setattr(filtered, name, getattr(net, name))
    return filtered


def _is_kept(layer: Message, state: Message) -> bool:
    if layer.include and layer.exclude:
        raise FormatError(f"layer {layer.name!r} ({layer.type}): include and exclude rules, expected only one kind")
    if layer.include:
        return any(_is_met(rule, state) for rule in layer.include)
    return not any(_is_met(rule, state) for rule in layer.exclude)


def _is_met(rule: Message, state: Message) -> bool:
    """Whether every part that the rule has is met; an empty rule always is."""
    return not (
        (rule.HasField("phase") and rule.phase != state.phase)
        or (rule.HasField("min_level") and state.level < rule.min_level)
        or (rule.HasField("max_level") and state.level > rule.max_level)
        or any(stage not in state.stage for stage in rule.stage)
        or any(stage in state.stage for stage in rule.not_stage)
    )


def refuse_lost_bottoms(net: Message, kept: Message, state: Message, given: Collection[str]) -> None:
    """Raise InputError where layers of `kept` read blobs that only layers which the rules left out of `net` write.

    state  the NetState that the rules were asked for
    given  blobs that the caller feeds
    """
    made = {top for layer in kept.layer for top in layer.top} | set(given)
    writers: dict[str, list[str]] = {}
    for layer in net.layer:
        for top in layer.top:
            writers.setdefault(top, []).append(layer.name)
    readers = {name: layer.name for layer in reversed(kept.layer) for name in layer.bottom}
    lost = [
        f"{name!r} (written by {', '.join(map(repr, dict.fromkeys(writers[name])))}, read by {reader!r})"
        for name, reader in readers.items()
        if name in writers and name not in made
    ]
    if lost:
        raise InputError(
            f"phase {PHASES[state.phase]}, level {state.level}, stages {list(state.stage)} leave out the layers that "
            f"write {', '.join(lost)}; {rules_hint(net)}; pass stages, phase or level (--stage, --phase, --level), "
            "or the shape of the blob to feed (inputs={...}, --input)"
        )


def known_stages(net: Message) -> set[str]:
    """Stages that the rules of the net's layers name."""
    return {stage for rule in _rules(net) for stage in (*rule.stage, *rule.not_stage)}


def rules_hint(net: Message) -> str:
    """The phases and stages that the net's rules name, for an error text."""
    phases = ", ".join(sorted({PHASES[rule.phase] for rule in _rules(net) if rule.HasField("phase")}))
    stages = ", ".join(sorted(known_stages(net)))
    return f"the net's rules name phases: {phases or 'none'}; stages: {stages or 'none'}"


def _rules(net: Message) -> Iterable[Message]:
    return (rule for layer in net.layer for rule in (*layer.include, *layer.exclude))


# From a training net to a deploy net, and deploy nets in which something of the training net was left

# What a loss leaves behind: what it computes from its first bottom before it looks at the labels.
_LEFT_BY_LOSS = {"SoftmaxWithLoss": "Softmax", "SigmoidCrossEntropyLoss": "Sigmoid"}

_JUDGE = re.compile(r"loss|accuracy|evaluat", re.IGNORECASE)
_SINKS = {"HDF5Output", "Silence", "MatWrite", "MAT_WRITE", "EvalDetection", "BoxAnnotatorOHEM", "Yolov3", "Null"}

_LEARNING_TYPES = {"BatchNorm", "BN", "Scale", "Bias", "PReLU", "Normalize", "Parameter"}
_LEARNING_PARAMS = ("convolution_param", "inner_product_param", "embed_param", "recurrent_param")

# Source layers whose tops do not mean anything by their position, so that any of them can go.
_FREE_TOPS = {"Input", "HDF5Data", "DummyData", "Python"}
_PER_TOP = {  # their lists with one entry a top
    "Input": ("input_param", ("shape",)),
    "DummyData": ("dummy_data_param", ("data_filler", "shape", "num", "channels", "height", "width")),
}


@dataclass(eq=False)
class _Version:
    """What one layer wrote under one name (a blob has several versions where layers work in place).

    writer  the layer, or None for a blob that no layer makes
    """

    name: str
    writer: "_Node | None"
    readers: "list[_Node]" = field(default_factory=list)
    is_label: bool = False
    live: bool = False


@dataclass(eq=False)
class _Node:
    """A layer and the versions that it reads and writes.

    learned  weights are in it, or somewhere before it, or nowhere in the net
    feeds    something after it, or it itself, has weights or is an output that is no judgement
    cut      it judges (a loss, an accuracy), or reads a label or a judgement
    """

    layer: Message
    bottoms: list[_Version]
    tops: list[_Version] = field(default_factory=list)
    learned: bool = False
    feeds: bool = False
    cut: bool = False


def to_deploy(net: Message) -> tuple[Message, list[str]]:
    """A new net without what only training and testing need, and a sentence for each thing cut.

    net   V2, already filtered for one phase. Data layers stay, without the tops that held labels.

    Losses, accuracies and sinks (HDF5Output, Silence) go, and everything that depends on labels or that nothing else
    reads. A label is a data layer's top, or a blob that no layer makes, that leads to no weights and no output
    but a judgement. SoftmaxWithLoss leaves a Softmax and SigmoidCrossEntropyLoss a Sigmoid under the loss layer's name;
    the last one's top is `prob`, the others' the layer's name. What other losses compared stays as an output.
    A net of which nothing that computes would be left stays as it is.
    """
    nodes, missing = _wire(net)
    sources = [version for node in nodes if not node.bottoms for version in node.tops] + missing
    _mark_labels(nodes, sources)
    for node in nodes:
        node.cut = _is_judge(node.layer) or any(_is_cut(version) for version in node.bottoms)

    computed = {(node.bottoms[0], node.layer.type) for node in nodes if node.bottoms}
    heads = [node for node in nodes if node.cut and _leaves_prediction(node, computed)]
    _mark_live(nodes, set(heads))

    deploy = NetParameter()
    if net.HasField("name"):
        deploy.name = net.name
    notes = []
    names = _name_predictions(heads, {version.name for node in nodes if not node.cut for version in node.tops})
    for node in nodes:
        layer = node.layer
        who = f"layer {layer.name!r} ({layer.type})"
        if node in names:
            head = _prediction(layer, names[node])
            deploy.layer.append(head)
            notes.append(f"{who} became {head.type}, top {names[node]!r}")
        elif node.cut or not (any(version.live for version in node.tops) or not node.tops):
            notes.append(f"{who} cut")
        else:
            kept = deploy.layer.add()
            kept.CopyFrom(layer)
            for name in ("include", "exclude", "phase", "loss_weight", "propagate_down"):
                kept.ClearField(name)
            if not node.bottoms:
                dropped = _drop_tops(kept, [version.live for version in node.tops])
                notes.extend(f"top {name!r} of {who} cut" for name in dropped)
    if not any(layer.bottom for layer in deploy.layer):
        deploy.CopyFrom(net)
        notes = ["nothing cut, since nothing that computes would be left"] if notes else []
    return deploy, notes


def cut_unfed(net: Message, given: Collection[str] = ()) -> tuple[Message, list[str]]:
    """The net without the losses, accuracies and sinks that read a label which no layer makes, and a sentence for each.

    given  blobs that the caller feeds, so that they are not missing

    Real Caffe refuses such a file. Everything else stays as it is: a missing blob that any other layer reads is an
    error of the net, which building it will report. So is a net of which nothing that computes would be left.
    """
    nodes, missing = _wire(net)
    later = {name for layer in net.layer for name in layer.top}
    missing = [version for version in missing if version.name not in given and version.name not in later]
    if not missing:
        return net, []
    _mark_labels(nodes, missing)
    notes = []
    for node in nodes:
        unfed = [version.name for version in node.bottoms if _is_cut(version)]
        node.cut = bool(unfed)
        if unfed:
            blobs = ", ".join(map(repr, unfed))
            notes.append(
                f"layer {node.layer.name!r} ({node.layer.type}) cut: it reads {blobs}, which no layer makes; "
                "to keep it, feed the label: give its shape (inputs={...} or --input)"
            )
    kept = [node.layer for node in nodes if not node.cut]
    if not notes or not any(layer.bottom for layer in kept):
        return net, []
    result = NetParameter()
    result.CopyFrom(net)
    del result.layer[:]
    result.layer.extend(kept)
    return result, notes


def _wire(net: Message) -> tuple[list[_Node], list[_Version]]:
    """The layers with their versions wired up, and the versions that no layer makes."""
    current: dict[str, _Version] = {}
    missing = []
    nodes = []
    for layer in net.layer:
        for name in layer.bottom:
            if name not in current:
                current[name] = _Version(name, None)
                missing.append(current[name])
        node = _Node(layer, [current[name] for name in layer.bottom])
        for version in node.bottoms:
            version.readers.append(node)
        node.tops = [_Version(name, node) for name in layer.top]
        current.update((version.name, version) for version in node.tops)
        nodes.append(node)
    return nodes, missing


def _mark_labels(nodes: list[_Node], sources: list[_Version]) -> None:
    learning = {id(node) for node in nodes if _learns(node.layer)}
    for node in nodes:
        before = [version.writer for version in node.bottoms if version.writer is not None]
        node.learned = not learning or id(node) in learning or any(writer.learned for writer in before)
    for node in reversed(nodes):
        after = [reader for version in node.tops for reader in version.readers]
        is_output = bool(node.bottoms) and any(not version.readers for version in node.tops)
        node.feeds = not _is_judge(node.layer) and (
            id(node) in learning or is_output or any(reader.feeds for reader in after)
        )
    for version in sources:
        if learning:
            version.is_label = bool(version.readers) and not any(reader.feeds for reader in version.readers)
        else:  # nothing learns, so that only the place in the judge's list tells
            version.is_label = bool(version.readers) and all(
                _is_judge(reader.layer) and version not in reader.bottoms[:1] for reader in version.readers
            )


def _mark_live(nodes: list[_Node], heads: Collection[_Node]) -> None:
    """Mark what an output needs. Outputs: what nobody read, predictions that judges read, what `heads` leave."""
    for node in reversed(nodes):
        for version in node.tops:
            if version.readers:
                judged = any(reader.cut and reader.layer.type != "Silence" for reader in version.readers)
                is_output = judged and node.learned and not version.is_label
            else:  # an Input that nobody reads is the author's wish, a data layer's unread top is a label
                is_output = bool(node.bottoms) or node.layer.type == "Input"
            version.live = not node.cut and (version.live or is_output)
        if node in heads:
            node.bottoms[0].live = True
        elif not node.cut and (not node.tops or any(version.live for version in node.tops)):
            for version in node.bottoms:
                version.live = True


def _is_cut(version: _Version) -> bool:
    return version.is_label or (version.writer is not None and version.writer.cut)


def _is_judge(layer: Message) -> bool:
    """Whether a layer computes something for training and testing only, or writes files."""
    return (
        layer.type in _SINKS
        or _JUDGE.search(layer.type) is not None
        or (layer.type == "Python" and _JUDGE.search(layer.python_param.layer) is not None)
        or any(layer.loss_weight)
    )


def _learns(layer: Message) -> bool:
    """Whether a layer has weights, as far as its type and its parameters tell."""
    return (
        bool(layer.param or layer.blobs)
        or layer.type in _LEARNING_TYPES
        or any(layer.HasField(name) for name in _LEARNING_PARAMS)
    )


def _leaves_prediction(node: _Node, computed: Collection[tuple[_Version, str]]) -> bool:
    """Whether the layer is a loss that leaves a prediction, and no layer of the net computes that already."""
    left = _LEFT_BY_LOSS.get(node.layer.type)
    if left is None or not node.bottoms or _is_cut(node.bottoms[0]):
        return False
    return (node.bottoms[0], left) not in computed


def _name_predictions(heads: list[_Node], taken: set[str]) -> dict[_Node, str]:
    """The top of each: the loss's second top (forks give the probabilities there), prob, or the layer's name."""
    names = {}
    for number, node in reversed(list(enumerate(heads, 1))):
        wishes = [*node.layer.top[1:2], *(["prob"] if node is heads[-1] else []), node.layer.name]
        name = next((wish for wish in wishes if wish and wish not in taken), f"prob{number}")
        while name in taken:
            name += "_"
        taken.add(name)
        names[node] = name
    return names


def _prediction(loss: Message, top: str) -> Message:
    layer = LayerParameter(name=loss.name, type=_LEFT_BY_LOSS[loss.type], bottom=loss.bottom[:1], top=[top])
    if loss.HasField("softmax_param"):
        layer.softmax_param.CopyFrom(loss.softmax_param)
    return layer


def _drop_tops(layer: Message, live: list[bool]) -> list[str]:
    """Remove tops that nothing needs from a layer without bottoms, with what its parameters say of them."""
    doomed = [index for index, is_live in enumerate(live) if not is_live]
    if layer.type not in _FREE_TOPS:  # the first top is the picture, the second the label: only last ones can go
        last_live = max((index for index, is_live in enumerate(live) if is_live), default=-1)
        doomed = [index for index in doomed if index > last_live]
    dropped = [layer.top[index] for index in doomed]
    lists = [layer.top]
    if layer.type in _PER_TOP:
        name, fields = _PER_TOP[layer.type]
        lists += [getattr(getattr(layer, name), field_name) for field_name in fields]
    for values in lists:
        if len(values) == len(live):
            for index in reversed(doomed):
                del values[index]
    return dropped
