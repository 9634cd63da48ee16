"""The published models and prototxts of ../shared/zoo against what real Caffe made of them."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import caffeport
from caffeport import CaffeportError, Network
from caffeport.description import describe
from caffeport.formats import read
from caffeport.layers import Array
from tests.agreement import disagreement
from tests.conftest import SHARED

ZOO = SHARED / "zoo"
PROTOTXTS = ZOO / "prototxts"
MODELS = sorted(path.parent.name for path in ZOO.glob("*/deploy.prototxt"))

# Weights files whose net inside is not the one in the prototxt, so that alone they compute something else.
NOT_ALONE = {
    "cifar10_full_h5": "HDF5 files hold no net",
    "mtcnn_det1": "the snapshot reads 'data12face', the prototxt 'data'",
    "mtcnn_det2": "the snapshot reads 'data24', the prototxt 'data'",
    "mtcnn_det3": "the snapshot reads 'data48', the prototxt 'data'",
    "mtcnn_fast_det2_fp16": "the snapshot puts its batch together from three data layers",
    "open_nsfw": "the snapshot says use_global_stats: false, so its BatchNorm takes the statistics of the batch",
    "ssd_face_res10": "the snapshot's conv8_2_h and conv9_2_h have pad 0, the prototxt's 1",
    "vanillacnn": "the snapshot reads 'X', the prototxt 'data'",
}

# Prototxts that are refused when read, and rightly so: real Caffe refuses them too.
UNREADABLE = {
    "TheLegendAli__DeepLab-Context__voc12_config_vgg128_noup_test.prototxt": r":400:17: .*template",
    "lim0606__caffe-googlenet-bn__deploy.prototxt": r':3106:9: .*"Softmax"',  # a quoted type in a V1 layer
    "xmojiao__deeplab_v2__nyu_config_deeplab_largeFOV_test.prototxt": r":381:17: .*template",
    "xmojiao__deeplab_v2__nyu_config_deeplab_largeFOV_train.prototxt": r":520:17: .*template",
}


def weights_of(model: str) -> Path:
    return next((ZOO / model).glob("weights.*"))


def reference(path: Path) -> tuple[dict[str, Array], dict[str, Array]]:
    """The arrays to feed, and those that Caffe (not OpenCV) computed."""
    with np.load(path) as stored:
        arrays = {key: stored[key] for key in stored.files if not key.startswith("opencv::")}
    fed = {key.removeprefix("in::"): array for key, array in arrays.items() if key.startswith("in::")}
    return fed, {key: array for key, array in arrays.items() if not key.startswith("in::")}


def disagreements(
    network: Network, fed: dict[str, Array], wanted: dict[str, Array], *, every: bool = True
) -> list[str]:
    """What differs; with `every`, the lack of a blob too."""
    with torch.no_grad():
        blobs = network.blobs({name: fed[name] for name in network.inputs})
    wrong = [f"no blob {key}" for key in wanted if key not in blobs and every]
    compared = {key: disagreement(blobs[key].numpy(), want) for key, want in wanted.items() if key in blobs}
    assert compared
    return wrong + [f"{key}: {problem}" for key, problem in compared.items() if problem]


@pytest.mark.parametrize("model", MODELS)
def test_every_stored_blob_is_caffes(model: str) -> None:
    network = caffeport.load(ZOO / model / "deploy.prototxt", weights_of(model))
    for name in ("reference.npz", "reference_fork.npz"):
        if (ZOO / model / name).exists():
            assert not disagreements(network, *reference(ZOO / model / name)), name


@pytest.mark.parametrize("model", [model for model in MODELS if model not in NOT_ALONE])
def test_weights_alone_give_the_same_blobs(model: str) -> None:
    network = caffeport.load(weights_of(model))
    name = "reference_fork.npz" if (ZOO / model / "reference_fork.npz").exists() else "reference.npz"
    assert not disagreements(network, *reference(ZOO / model / name), every=False)


def test_hdf5_weights_alone_are_refused() -> None:
    with pytest.raises(CaffeportError, match="prototxt first"):
        caffeport.load(weights_of("cifar10_full_h5"))


def test_binary_net_without_weights_is_the_text_one() -> None:
    folder = ZOO / "waifu2x_upconv7"
    nets = folder / "net.protobin", folder / "deploy.prototxt"
    binary, text = (caffeport.load(net, weights_of(folder.name)) for net in nets)
    fed, wanted = reference(folder / "reference.npz")
    assert not disagreements(binary, fed, wanted, every=False)
    assert list(binary.state_dict()) == list(text.state_dict())


def index() -> list[Any]:
    if not PROTOTXTS.is_dir():
        return []
    with open(PROTOTXTS / "index.tsv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    return [pytest.param(row, id=row["file"].removesuffix(".prototxt")) for row in rows]


@pytest.mark.parametrize("row", index())
def test_prototxt_is_read_and_has_caffes_shapes(row: dict[str, str]) -> None:
    """All are read; what real Caffe built has the same blobs in the same shapes, the rest builds or says why not."""
    path = PROTOTXTS / row["file"]
    if row["file"] in UNREADABLE:
        assert row["builds"] == "no"
        with pytest.raises(caffeport.FormatError, match=UNREADABLE[row["file"]]):
            read(path)
        return
    assert read(path).net is not None
    if row["builds"] == "yes":
        wanted = json.loads((PROTOTXTS / "shapes.json").read_text())[row["file"]]
        shapes = {name: list(operand.shape) for name, operand in describe(path).graph.blobs.items()}
        assert {name: shapes.get(name) for name in wanted} == wanted
        return
    try:
        describe(path)
    except (caffeport.UnsupportedLayer, caffeport.ShapeError, caffeport.InputError) as error:
        text = str(error)
        assert "layer" in text


@pytest.mark.parametrize("path", sorted((PROTOTXTS / "not_nets").glob("*.prototxt")), ids=lambda path: path.stem)
def test_other_text_files_are_named(path: Path) -> None:
    with pytest.raises(caffeport.FormatError, match=r"this is a (solver|label map)"):
        caffeport.load(path)
