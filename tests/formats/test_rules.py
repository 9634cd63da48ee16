"""Phase, level and stage rules as real Caffe applies them, and what a deploy net keeps of a training net."""

import pytest

from caffeport.errors import FormatError, InputError
from caffeport.formats.rules import filter_net, known_stages, rules_hint, to_deploy
from caffeport.formats.schema import NetParameter
from caffeport.formats.text import parse_text
from caffeport.formats.upgrade import upgrade
from tests.conftest import SHARED, needs_shared


def net(text):
    message = NetParameter()
    assert parse_text(text, message, "net.prototxt") == []
    return message


def kept(rules, **state):
    """Whether a layer with `rules` is in the filtered net."""
    filtered = filter_net(net(f"layer {{ name: 'always' }} layer {{ name: 'a' {rules} }}"), **state)
    return len(filtered.layer) == 2


# Rules


@pytest.mark.parametrize(
    "rules, state, expected",
    [
        ("", {}, True),
        ("include { phase: TEST }", {}, True),
        ("include { phase: TRAIN }", {}, False),
        ("include { phase: TRAIN }", {"phase": "TRAIN"}, True),
        ("exclude { phase: TEST }", {}, False),
        ("exclude { phase: TRAIN }", {}, True),
        ("include {}", {}, True),
        ("exclude {}", {}, False),
        ("include { min_level: 1 }", {}, False),
        ("include { min_level: 1 }", {"level": 1}, True),
        ("include { max_level: 1 }", {"level": 1}, True),
        ("include { max_level: 1 }", {"level": 2}, False),
        ("include { min_level: 0 }", {"level": -1}, False),
        ("include { stage: 'a' stage: 'b' }", {"stages": ["a"]}, False),
        ("include { stage: 'a' stage: 'b' }", {"stages": ["b", "a"]}, True),
        ("include { not_stage: 'a' }", {}, True),
        ("include { not_stage: 'a' not_stage: 'b' }", {"stages": ["b"]}, False),
        ("include { phase: TEST stage: 'a' }", {"stages": ["a"], "phase": "TRAIN"}, False),
        ("include { phase: TRAIN } include { stage: 'a' }", {"stages": ["a"]}, True),
        ("exclude { phase: TRAIN } exclude { stage: 'a' }", {"stages": ["a"]}, False),
    ],
)
def test_rules(rules, state, expected):
    assert kept(rules, **state) is expected


def test_the_callers_phase_and_level_replace_the_files_and_stages_are_added():
    rules = "include { phase: TEST max_level: 0 stage: 'a' stage: 'b' }"
    text = f"state {{ phase: TRAIN level: 2 stage: 'a' }} layer {{ name: 'l' {rules} }}"
    filtered = filter_net(net(text), stages=["b"])
    assert [layer.name for layer in filtered.layer] == ["l"]
    assert (filtered.state.phase, filtered.state.level, filtered.state.stage) == (1, 0, ["a", "b"])


def test_the_net_itself_is_not_changed():
    original = net("name: 'n' force_backward: true layer { name: 'a' include { phase: TRAIN } } layer { name: 'b' }")
    copy = NetParameter()
    copy.CopyFrom(original)
    filtered = filter_net(original)
    assert original == copy
    assert (filtered.name, filtered.force_backward) == ("n", True)


def test_both_kinds_of_rules_are_an_error():
    with pytest.raises(FormatError, match=r"layer 'a' \(ReLU\): include and exclude rules"):
        kept("type: 'ReLU' include { phase: TEST } exclude { phase: TEST }")


STAGED = """
    layer { name: 'd1' top: 'data' include { stage: 'train' } }
    layer { name: 'd2' top: 'data' include { stage: 'deploy' phase: TEST not_stage: 'x' } }
    layer { name: 'c' bottom: 'data' top: 'c' exclude { phase: TRAIN } }"""


def test_known_stages():
    assert known_stages(net(STAGED)) == {"train", "deploy", "x"}
    assert rules_hint(net(STAGED)) == "the net's rules name phases: TEST, TRAIN; stages: deploy, train, x"
    assert rules_hint(net("layer {}")) == "the net's rules name phases: none; stages: none"


def test_nothing_left_names_phases_and_stages():
    text = "layer { include { stage: 'deploy' } } layer { include { phase: TRAIN } }"
    with pytest.raises(
        InputError, match=r"phase TEST, level 0, stages \['a'\] leave no layer; .*TRAIN; stages: deploy"
    ):
        filter_net(net(text), stages=["a"])


def test_nothing_left_that_computes():
    with pytest.raises(InputError, match=r"leave no layer that computes anything; .*stages: deploy, train"):
        filter_net(net(STAGED), phase="TRAIN", stages=["train"])


def test_an_empty_net_and_a_net_of_inputs_stay():
    assert len(filter_net(net("")).layer) == 0
    assert len(filter_net(net("layer { top: 'a' } layer { top: 'b' include { phase: TRAIN } }")).layer) == 1


@pytest.mark.parametrize("arguments", [{"phase": "test"}, {"phase": "DEPLOY"}, {"stages": "deploy"}])
def test_wrong_arguments(arguments):
    with pytest.raises(InputError, match="expected"):
        filter_net(net("layer {}"), **arguments)


# To deploy


DATA = "layer { name: 'd' type: 'Data' top: 'data' top: 'label' } "


def layer(name, type_, bottoms, tops, more=""):
    bottom = " ".join(f"bottom: '{blob}'" for blob in bottoms.split())
    top = " ".join(f"top: '{blob}'" for blob in tops.split())
    if type_ == "InnerProduct":
        more += " inner_product_param { num_output: 2 }"
    return f"layer {{ name: '{name}' type: '{type_}' {bottom} {top} {more} }} "


FC = layer("fc", "InnerProduct", "data", "fc")


def deployed(text):
    """The deploy net in one line a layer, `name type bottoms -> tops`, and the notes."""
    deploy, notes = to_deploy(net(text))
    lines = [f"{each.name} {each.type} {' '.join(each.bottom)} -> {' '.join(each.top)}" for each in deploy.layer]
    return lines, notes


def test_a_classifier():
    text = (
        DATA + FC + layer("acc", "Accuracy", "fc label", "acc") + layer("loss", "SoftmaxWithLoss", "fc label", "loss")
    )
    lines, notes = deployed(text)
    assert lines == ["d Data  -> data", "fc InnerProduct data -> fc", "loss Softmax fc -> prob"]
    assert notes == [
        "top 'label' of layer 'd' (Data) cut",
        "layer 'acc' (Accuracy) cut",
        "layer 'loss' (SoftmaxWithLoss) became Softmax, top 'prob'",
    ]


def test_parameters_follow_and_rules_and_weights_of_losses_go():
    text = DATA + layer("fc", "InnerProduct", "data", "fc", "phase: TRAIN include { phase: TRAIN } param { name: 'w' }")
    text += layer(
        "loss", "SoftmaxWithLoss", "fc label", "loss", "softmax_param { axis: 2 } loss_param {} loss_weight: 3"
    )
    deploy, _ = to_deploy(net("name: 'n' state { phase: TRAIN }" + text))
    assert deploy == net(
        "name: 'n'"
        + layer("d", "Data", "", "data")
        + layer("fc", "InnerProduct", "data", "fc", "param { name: 'w' }")
        + layer("loss", "Softmax", "fc", "prob", "softmax_param { axis: 2 }")
    )


def test_a_name_that_is_taken():
    text = DATA + layer("prob", "InnerProduct", "data", "prob") + layer("loss", "SoftmaxWithLoss", "prob label", "loss")
    assert deployed(text)[0][-1] == "loss Softmax prob -> loss"
    text = (
        DATA + layer("loss", "InnerProduct", "data", "prob loss") + layer("loss", "SoftmaxWithLoss", "prob label", "x")
    )
    assert deployed(text)[0][-1] == "loss Softmax prob -> prob1"


def test_several_heads_are_kept_and_the_last_is_prob():
    text = DATA + FC + layer("fc2", "InnerProduct", "fc", "fc2")
    text += layer("loss1", "SoftmaxWithLoss", "fc label", "l1") + layer("loss2", "SoftmaxWithLoss", "fc2 label", "l2")
    assert deployed(text)[0][-2:] == ["loss1 Softmax fc -> loss1", "loss2 Softmax fc2 -> prob"]


def test_the_second_top_of_a_forks_loss_names_the_probabilities():
    text = DATA + FC + layer("loss", "SoftmaxWithLoss", "fc label", "loss p")
    assert deployed(text)[0][-1] == "loss Softmax fc -> p"


def test_a_softmax_that_is_there_already_is_enough():
    text = DATA + FC + layer("s", "Softmax", "fc", "p") + layer("a", "Accuracy", "p label", "a")
    text += layer("loss", "SoftmaxWithLoss", "fc label", "loss")
    assert deployed(text)[0] == ["d Data  -> data", "fc InnerProduct data -> fc", "s Softmax fc -> p"]


def test_sigmoid_cross_entropy_leaves_a_sigmoid():
    text = DATA + FC + layer("loss", "SigmoidCrossEntropyLoss", "fc label", "loss")
    assert deployed(text)[0][-1] == "loss Sigmoid fc -> prob"


@pytest.mark.parametrize("bottoms", ["fc label", "label fc"])
@pytest.mark.parametrize("type_", ["EuclideanLoss", "HingeLoss", "SmoothL1Loss", "WarpCTCLoss", "Accuracy"])
def test_what_other_judges_compare_stays(type_, bottoms):
    assert deployed(DATA + FC + layer("j", type_, bottoms, "j"))[0] == ["d Data  -> data", "fc InnerProduct data -> fc"]


def test_python_losses_and_layers_with_a_loss_weight():
    python = "python_param { module: 'm' layer: 'EuclideanLossLayer' }"
    text = (
        DATA + FC + layer("j", "Python", "fc label", "j", python) + layer("k", "Reduction", "fc", "k", "loss_weight: 1")
    )
    assert deployed(text)[0] == ["d Data  -> data", "fc InnerProduct data -> fc"]


def test_branches_that_only_labels_feed_are_cut():
    text = DATA + FC + layer("cut", "Slice", "label", "one two") + layer("j1", "HingeLoss", "fc one", "j1")
    text += layer("p", "Power", "two", "half") + layer("j2", "EuclideanLoss", "fc half", "j2")
    text += layer("sum", "Eltwise", "j1 j2", "sum")
    lines, notes = deployed(text)
    assert lines == ["d Data  -> data", "fc InnerProduct data -> fc"]
    assert [note.split("'")[1] for note in notes] == ["label", "cut", "j1", "p", "j2", "sum"]


def test_a_label_layer_of_its_own_goes():
    text = layer("d", "Input", "", "data") + layer("l", "HDF5Data", "", "label mask") + FC
    text += layer("m", "Eltwise", "fc mask", "m") + layer("loss", "EuclideanLoss", "m label", "loss")
    assert deployed(text)[0] == ["d Input  -> data", "fc InnerProduct data -> fc"]


def test_a_target_made_of_the_input_is_cut():
    text = layer("d", "Data", "", "data") + layer("f", "Flatten", "data", "flat") + FC
    text += layer("loss", "EuclideanLoss", "fc flat", "loss")
    assert deployed(text)[0] == ["d Data  -> data", "fc InnerProduct data -> fc"]


def test_silenced_branches_are_cut_and_unread_tops_are_outputs():
    text = DATA + FC + layer("a", "InnerProduct", "fc", "a") + layer("s", "Silence", "a label", "")
    text += layer("b", "InnerProduct", "fc", "b") + layer("h", "HDF5Output", "b label", "")
    assert deployed(text)[0] == ["d Data  -> data", "fc InnerProduct data -> fc", "b InnerProduct fc -> b"]


def test_in_place_layers_stay_in_the_chain():
    text = DATA + FC + layer("r", "ReLU", "fc", "fc") + layer("o", "Dropout", "fc", "fc")
    text += layer("loss", "SoftmaxWithLoss", "fc label", "loss")
    assert [line.split()[0] for line in deployed(text)[0]] == ["d", "fc", "r", "o", "loss"]


def test_a_label_that_no_layer_makes():
    lines, notes = deployed(layer("d", "Input", "", "data") + FC + layer("a", "Accuracy", "fc label", "a"))
    assert lines == ["d Input  -> data", "fc InnerProduct data -> fc"]
    assert notes == ["layer 'a' (Accuracy) cut"]


def test_siamese_nets_keep_both_features():
    text = layer("d", "Data", "", "pair sim") + layer("s", "Slice", "pair", "data data2") + FC
    text += layer("fc2", "InnerProduct", "data2", "fc2") + layer("loss", "ContrastiveLoss", "fc fc2 sim", "loss")
    assert [line.split()[0] for line in deployed(text)[0]] == ["d", "s", "fc", "fc2"]


DEPLOY = [
    layer("d", "Input", "", "data") + FC + layer("p", "Softmax", "fc", "prob"),
    layer("d", "Input", "", "data unread") + FC,
    layer("i", "Input", "", "data im_info") + FC + layer("p", "Proposal", "fc im_info", "rois"),
    layer("d", "Input", "", "data") + layer("p", "Pooling", "data", "top mask"),
]


@pytest.mark.parametrize("text", DEPLOY)
def test_a_deploy_net_stays_as_it_is(text):
    assert to_deploy(net(text)) == (net(text), [])


def test_tops_of_a_data_layer_keep_their_places():
    """The second top of a Data layer is the label wherever it is used, so that the first stays before it."""
    text = DATA + layer("e", "Embed", "label", "e", "embed_param { num_output: 2 }")
    assert deployed(text)[0][0] == "d Data  -> data label"


def test_what_parameters_say_of_a_dropped_top_goes_too():
    shapes = "input_param { shape { dim: 1 } shape { dim: 2 } shape { dim: 3 } }"
    text = layer("d", "Input", "", "label data mask", shapes) + FC + layer("m", "Eltwise", "fc mask", "m")
    text += layer("loss", "EuclideanLoss", "m label", "loss")
    deploy, _ = to_deploy(net(text))
    assert deploy.layer[0] == net(layer("d", "Input", "", "data", "input_param { shape { dim: 2 } }")).layer[0]


def test_a_net_without_weights():
    text = DATA + layer("p", "Pooling", "data", "p") + layer("loss", "SoftmaxWithLoss", "p label", "loss")
    assert deployed(text)[0] == ["d Data  -> data", "p Pooling data -> p", "loss Softmax p -> prob"]
    text = DATA + layer("p", "Pooling", "data", "p") + layer("loss", "EuclideanLoss", "p label", "loss")
    assert deployed(text)[0] == ["d Data  -> data", "p Pooling data -> p"]


def test_a_net_of_a_loss_alone_stays():
    text = layer("d", "Input", "", "a b") + layer("loss", "EuclideanLoss", "a b", "loss")
    assert to_deploy(net(text)) == (net(text), ["nothing cut, since nothing that computes would be left"])


@needs_shared
def test_public_training_nets():
    """In each, what is left reads nothing that the cut took away."""
    changed = 0
    for path in sorted((SHARED / "zoo" / "prototxts").glob("*.prototxt")):
        message = NetParameter()
        try:
            parse_text(path.read_bytes(), message, path.name)
        except FormatError:
            continue  # test_text.py says which and why
        for phase in ("TRAIN", "TEST"):
            filtered = filter_net(upgrade(message, path.name)[0], phase=phase)
            deploy, notes = to_deploy(filtered)
            changed += bool(notes)
            assert len(deploy.layer) > 0, path.name
            assert missing(deploy) <= missing(filtered), path.name
            assert to_deploy(deploy)[0].layer == deploy.layer, path.name
    assert changed > 80


def missing(message):
    """Blobs that are read and never made."""
    made = {top for each in message.layer for top in each.top}
    return {bottom for each in message.layer for bottom in each.bottom} - made
