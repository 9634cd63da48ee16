"""The converted folder: whole or not at all, and safe to read."""

import errno
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import caffeport
from caffeport import CaffeportError, FormatError, InputError, WeightsError, store
from caffeport.store import convert
from tests.conftest import DIGITS, ROOT
from tests.test_graph import DATA, layer
from tests.test_loading import SMALL, small, state
from tests.test_network import HOSTILE, PERMISSIVE, TIED


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    target = tmp_path / "small"
    convert(SMALL.encode(), small().SerializeToString(), target)
    return target


def contents(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


# ---- round trip


@pytest.mark.parametrize("weights", ["digits.caffemodel", "digits_v1.caffemodel", "digits.caffemodel.h5"])
def test_a_folder_is_the_same_network_bit_for_bit(weights: str, tmp_path: Path) -> None:
    converted = convert(DIGITS / "deploy.prototxt", DIGITS / weights, tmp_path / "digits")
    again = caffeport.load(tmp_path / "digits")
    before, after = state(converted.network), state(again)
    assert list(before) == list(after)
    assert all(before[key].tobytes() == after[key].tobytes() for key in before)
    x = torch.rand(3, 1, 8, 8)
    assert torch.equal(again(x), converted.network(x))
    assert again.inputs == converted.network.inputs and again.outputs == ["prob"]
    assert str(again) == str(converted.network)


@pytest.mark.parametrize("text", [TIED, PERMISSIVE])
def test_shared_parameters_are_stored_once(text: str, tmp_path: Path) -> None:
    network = convert(text.encode(), None, tmp_path / "net").network
    again = caffeport.load(tmp_path / "net")
    assert len(list(again.parameters())) == 1
    x = torch.rand(*next(iter(network.inputs.values())))
    want, got = network.blobs(x), again.blobs(x)
    assert all(torch.equal(got[key], want[key]) for key in want)
    size = next(again.parameters()).numel() * 4
    assert (tmp_path / "net" / "model.safetensors").stat().st_size < size + 1000


def test_names_of_any_kind(tmp_path: Path) -> None:
    names = [name.replace('"', '\\"').replace("\n", "\\n") for name in HOSTILE]
    text = DATA + "".join(
        layer(name, "Scale", "data", f"t{i}", f"scale_param {{ filler {{ value: {i} }} }}")
        for i, name in enumerate(names)
    )
    network = convert(text.encode(), None, tmp_path / "net").network
    again = caffeport.load(tmp_path / "net")
    assert again.names == network.names
    x = torch.rand(2, 3, 4, 5)
    assert all(torch.equal(value, again.blobs(x)[key]) for key, value in network.blobs(x).items())


def test_open_inputs_stay_open(tmp_path: Path) -> None:
    convert(SMALL.encode(), small().SerializeToString(), tmp_path / "net", inputs={"data": (None, 1, 2, 2)})
    assert caffeport.load(tmp_path / "net").inputs == {"data": (None, 1, 2, 2)}


def test_facts_hold_hashes_of_files_and_arrays(tmp_path: Path) -> None:
    convert(DIGITS / "deploy.prototxt", DIGITS / "digits.caffemodel", tmp_path / "digits")
    facts = json.loads((tmp_path / "digits" / "caffeport.json").read_text())
    assert [source["file"] for source in facts["sources"]] == ["deploy.prototxt", "digits.caffemodel"]
    assert all(len(source["sha256"]) == 64 for source in facts["sources"])
    assert facts["blobs"]["conv1"][0]["shape"] == [20, 1, 3, 3]
    assert facts["tensors"]["conv1.weight"] == facts["blobs"]["conv1"][0]["sha256"]


def test_a_source_whose_name_is_not_utf8(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/w\xff.caffemodel"))
    path.write_bytes(small().SerializeToString())
    convert(SMALL.encode(), path, tmp_path / "net")
    assert caffeport.load(tmp_path / "net").outputs == ["ip"]


def test_a_readme_of_foreign_names_has_no_markup(tmp_path: Path) -> None:
    text = 'input: "<img/src=x>`" input_shape { dim: 1 } ' + layer("r", "ReLU", "<img/src=x>`", "[y](http://x)")
    convert(text.encode(), None, tmp_path / "net")
    assert not set("<>[]") & set((tmp_path / "net" / "README.md").read_text().partition("```")[0])


def test_what_was_missing_stands_in_the_readme(tmp_path: Path) -> None:
    net = small()
    del net.layer[3]
    done = convert(SMALL.encode(), net.SerializeToString(), tmp_path / "net", strict=False)
    assert any("'ip' (InnerProduct); they keep their fillers" in warning for warning in done.to_dict()["warnings"])
    readme = (tmp_path / "net" / "README.md").read_text()
    assert "Warning: " in readme and "'ip' (InnerProduct); they keep their fillers." in readme
    convert(SMALL.encode(), small().SerializeToString(), tmp_path / "whole")
    assert "Warning" not in (tmp_path / "whole" / "README.md").read_text()


def test_a_whole_part_of_a_damaged_file_is_told_in_the_readme(tmp_path: Path) -> None:
    data = small().SerializeToString()
    convert(SMALL.encode(), data[: len(data) - 60], tmp_path / "net", strict=False, salvage=True)
    assert "'ip' (InnerProduct); they keep their fillers" in (tmp_path / "net" / "README.md").read_text()


@pytest.mark.parametrize("shape", [(3, 2, 2), (3,)])
def test_a_mean_of_other_channels_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    np.save(tmp_path / "mean.npy", np.ones(shape, np.float32))
    with pytest.raises(InputError, match=r"a mean of (shape \(3, 2, 2\)|3 values) for"):
        convert(SMALL.encode(), small().SerializeToString(), tmp_path / "net", mean=tmp_path / "mean.npy")
    assert not (tmp_path / "net").exists()


# ---- where it may be written


def test_what_exists_is_replaced_only_with_force(folder: Path) -> None:
    before = contents(folder)
    with pytest.raises(InputError, match="--force"):
        convert(SMALL.encode(), None, folder)
    assert contents(folder) == before
    convert(SMALL.encode(), None, folder, force=True)
    assert contents(folder)["model.safetensors"] != before["model.safetensors"]
    assert [path.name for path in folder.parent.iterdir()] == ["small"]


@pytest.mark.parametrize("force", [False, True])
def test_what_caffeport_did_not_write_is_never_replaced(tmp_path: Path, force: bool) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("three years")
    (tmp_path / "file").write_text("a file")
    for target in (tmp_path / "mine", tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError):
            convert(SMALL.encode(), None, target, force=force)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "three years"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "mine"]


@pytest.mark.parametrize(
    "net, weights",
    [
        (b"layer {", None),
        (SMALL.encode(), b"\xff" * 50),
        (SMALL.encode(), small().SerializeToString()[:-30]),
        (small().SerializeToString(), SMALL.encode()),
    ],
)
def test_bad_files_leave_nothing(tmp_path: Path, net: bytes, weights: bytes | None) -> None:
    with pytest.raises(CaffeportError):
        convert(net, weights, tmp_path / "net")
    assert list(tmp_path.iterdir()) == []


# ---- when writing fails


@pytest.mark.parametrize("place", ["save_file", "_flush", "_readme", "_facts"])
@pytest.mark.parametrize("force", [False, True])
def test_a_failure_at_any_stage_leaves_what_was_there(
    monkeypatch: pytest.MonkeyPatch, folder: Path, place: str, force: bool
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = contents(folder.parent)
    monkeypatch.setattr(store, place, full)
    target = folder if force else folder.parent / "new"
    with pytest.raises(InputError, match="cannot be written: No space left"):
        convert(SMALL.encode(), None, target, force=force)
    assert contents(folder.parent) == before
    assert [path.name for path in folder.parent.iterdir()] == ["small"]


def test_a_folder_that_cannot_be_put_in_place_leaves_the_old_one(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if "partial" in self.name:
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    before = contents(folder)
    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(InputError, match="Input/output error"):
        convert(SMALL.encode(), None, folder, force=True)
    assert contents(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == ["small"]


def test_a_disk_that_takes_no_more(tmp_path: Path) -> None:
    """For real: a process that may not write files of more than 20,000 bytes."""
    code = f"""
import resource, caffeport
from caffeport.store import convert
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    convert({str(DIGITS / "deploy.prototxt")!r}, {str(DIGITS / "digits.caffemodel")!r}, {str(tmp_path / "net")!r})
except caffeport.InputError as error:
    assert "cannot be written" in str(error), error
else:
    raise SystemExit("written")
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=120)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_place(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="cannot be written"):
        convert(SMALL.encode(), None, tmp_path / "net")


def test_leftovers_of_killed_runs_are_swept(folder: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    partial = folder.parent / f".small.partial-{dead.pid}"
    partial.mkdir()
    (partial / "model.safetensors").write_text("half")
    folder.rename(folder.parent / f".small.replaced-{dead.pid}")  # killed between the two renames
    with pytest.raises(InputError, match="--force"):
        convert(SMALL.encode(), None, folder)
    assert caffeport.load(folder).outputs == ["ip"]
    assert [path.name for path in folder.parent.iterdir()] == ["small"]


@pytest.mark.slow
def test_kill_9_at_any_moment_leaves_no_folder_or_a_whole_one(tmp_path: Path) -> None:
    arguments = f"{str(DIGITS / 'deploy.prototxt')!r}, {str(DIGITS / 'digits.caffemodel')!r}"
    code = f"""
import caffeport.store as store
for i in range(100000):
    print(i, flush=True)
    store.convert({arguments}, f"{tmp_path}/net{{i % 2}}", force=True)
"""
    rng = random.Random(0)
    for _ in range(20):
        process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()  # importing is over
        time.sleep(rng.uniform(0, 0.12))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        for target in tmp_path.glob("net*"):
            assert len(state(caffeport.load(target))) == 8
    convert(DIGITS / "deploy.prototxt", DIGITS / "digits.caffemodel", tmp_path / "net0", force=True)
    convert(DIGITS / "deploy.prototxt", DIGITS / "digits.caffemodel", tmp_path / "net1", force=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net0", "net1"]


# ---- hostile folders


def safetensors(header: Any, body: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + body


def entry(shape: Any = (2,), offsets: Any = (0, 8), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


HOSTILE_WEIGHTS = {
    "empty": b"",
    "short": b"\x01\0\0",
    "header beyond the end": safetensors({}, length=2**40),
    "header of 2^64": safetensors({}, length=2**64 - 1),
    "no JSON": safetensors(b"{"),
    "not UTF-8": safetensors(b"\xff\xfe"),
    "a list": safetensors([]),
    "deep": safetensors(b"[" * 100_000),
    "entry is a number": safetensors({"conv.bias": 3}),
    "no dtype": safetensors({"conv.bias": {"shape": [2], "data_offsets": [0, 8]}}, bytes(8)),
    "dtype F16": safetensors({"conv.bias": entry(dtype="F16")}, bytes(8)),
    "dtype is a list": safetensors({"conv.bias": entry(dtype=["F32"])}, bytes(8)),
    "offsets beyond the end": safetensors({"conv.bias": entry()}, bytes(4)),
    "offsets below 0": safetensors({"conv.bias": entry(offsets=[-8, 0])}, bytes(8)),
    "offsets that run backwards": safetensors({"conv.bias": entry(offsets=[8, 0])}, bytes(8)),
    "three offsets": safetensors({"conv.bias": entry(offsets=[0, 8, 9])}, bytes(8)),
    "offsets are text": safetensors({"conv.bias": entry(offsets=["0", "8"])}, bytes(8)),
    "offsets are reals": safetensors({"conv.bias": entry(offsets=[0.0, 8.0])}, bytes(8)),
    "shape and length differ": safetensors({"conv.bias": entry(shape=[3])}, bytes(8)),
    "shape below 0": safetensors({"conv.bias": entry(shape=[-1, -2])}, bytes(8)),
    "shape of 2^70": safetensors({"conv.bias": entry(shape=[0, 2**70], offsets=[0, 0])}, bytes(8)),
    "shape is text": safetensors({"conv.bias": entry(shape="2")}, bytes(8)),
    "shape of reals": safetensors({"conv.bias": entry(shape=[2.0])}, bytes(8)),
    "65 axes": safetensors({"conv.bias": entry(shape=[1] * 65, offsets=[0, 4])}, bytes(8)),
    "overlapping arrays": safetensors({"conv.bias": entry(), "ip.bias": entry(offsets=[4, 12])}, bytes(12)),
    "arrays are missing": safetensors({"conv.bias": entry()}, bytes(8)),
}


@pytest.mark.parametrize("data", [pytest.param(data, id=name) for name, data in HOSTILE_WEIGHTS.items()])
def test_hostile_safetensors(folder: Path, data: bytes) -> None:
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises((FormatError, WeightsError)):
        caffeport.load(folder)


HOSTILE_FACTS: dict[str, bytes | Callable[[dict[str, Any]], Any]] = {
    "empty": b"",
    "no JSON": b"{",
    "not UTF-8": b"\xff",
    "deep": b"[" * 100_000,
    "a list": b"[]",
    "no format": lambda facts: {},
    "format 99": lambda facts: facts | {"format": 99},
    "blobs is a list": lambda facts: facts | {"blobs": [1]},
    "blobs of numbers": lambda facts: facts | {"blobs": {"conv": 3}},
    "shape is text": lambda facts: facts | {"blobs": {"conv": [{"shape": ["x"]}]}},
    "shape below 0": lambda facts: facts | {"blobs": {"conv": [{"shape": [-1]}]}},
    "shape of 2^62": lambda facts: facts | {"blobs": {"conv": [{"shape": [2**62, 2**62]}]}},
    "shape of 2^70": lambda facts: facts | {"blobs": {"conv": [{"shape": [2**70]}]}},
    "shape is infinite": lambda facts: facts | {"blobs": {"conv": [{"shape": [float("inf")]}]}},
    "no sums": lambda facts: {key: value for key, value in facts.items() if key != "sums"},
    "100 axes": lambda facts: facts | {"blobs": {"conv": [{"shape": [1] * 100}]}},
}


@pytest.mark.parametrize("change", [pytest.param(change, id=name) for name, change in HOSTILE_FACTS.items()])
def test_hostile_facts(folder: Path, change: bytes | Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "caffeport.json"
    data = change if isinstance(change, bytes) else json.dumps(change(json.loads(path.read_text()))).encode()
    path.write_bytes(data)
    with pytest.raises(FormatError, match=r"caffeport\.json"):
        caffeport.load(folder)


@pytest.mark.parametrize("text", [b"", b"layer {", b"\x89HDF\r\n\x1a\n", layer("r", "ReLU", "nope", "y").encode()])
def test_hostile_nets(folder: Path, text: bytes) -> None:
    (folder / "deploy.prototxt").write_bytes(text)
    with pytest.raises(CaffeportError):
        caffeport.load(folder)


@pytest.mark.parametrize("name", ["deploy.prototxt", "model.safetensors", "caffeport.json"])
@pytest.mark.parametrize("kind", ["missing", "folder", "pipe"])
def test_a_folder_that_is_not_whole(folder: Path, name: str, kind: str) -> None:
    (folder / name).unlink()
    if kind == "folder":
        (folder / name).mkdir()
    elif kind == "pipe":
        os.mkfifo(folder / name)
    with pytest.raises(FormatError, match=name):
        caffeport.load(folder)


def test_numbers_of_a_folder_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    net = small()
    net.layer[3].blobs[1].data[0] = np.nan
    convert(SMALL.encode(), net.SerializeToString(), tmp_path / "net", allow_nonfinite=True)
    with pytest.raises(WeightsError, match=r"'ip' \(InnerProduct\): 1"):
        caffeport.load(tmp_path / "net")
    caffeport.load(tmp_path / "net", allow_nonfinite=True)


def test_no_flipped_bit_changes_a_weight_in_silence(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    wanted = state(caffeport.load(folder))
    header = 8 + int.from_bytes(data[:8], "little")
    for bit in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        (folder / "model.safetensors").write_bytes(flipped)
        try:
            got = state(caffeport.load(folder))
        except CaffeportError:
            continue
        assert bit // 8 < header, f"bit {bit % 8} of byte {bit // 8}"
        assert all(got[key].tobytes() == wanted[key].tobytes() for key in wanted)


def other_numbers(data: bytearray) -> None:
    data[-8:] = bytes(8)


def one_more_array(data: bytearray) -> None:
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length]) | {"conv.more": entry(shape=[0], offsets=[0, 0])}
    data[: 8 + length] = safetensors(header)


@pytest.mark.parametrize("damage, named", [(other_numbers, "'ip.'"), (one_more_array, "'conv.more'")])
def test_weights_that_were_changed_since_are_refused_by_name(
    folder: Path, damage: Callable[[bytearray], None], named: str
) -> None:
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    damage(data)
    path.write_bytes(data)
    with pytest.raises(FormatError, match=rf"model\.safetensors: {named[:-1]}.* damaged or changed"):
        caffeport.load(folder)


def test_a_small_limit_of_memory_is_enough_for_a_large_shape(folder: Path) -> None:
    """Shapes in caffeport.json cost nothing, whatever they say."""
    path = folder / "caffeport.json"
    facts = json.loads(path.read_text())
    facts["blobs"]["conv"] = [{"shape": [2**31, 2**20]}]
    path.write_text(json.dumps(facts))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    caffeport.load(folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB
