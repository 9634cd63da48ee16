"""How fast each road runs on a CPU: Network, folded, compiled, onnxruntime, OpenCV, real Caffe; and ONNX node counts.

    python tests/bench/export.py deploy.prototxt net.caffemodel [--caffe PYTHON] [--batches 1,8] [--threads 1,2]

All contenders of a line take turns, so that other work on the machine hits them alike; shown is the fastest run of each
in milliseconds, and its ratio to the folded network's. Needs the extras `opencv` and `bench`.
"""

import argparse
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import caffeport
from caffeport.layers import Array

CAFFE = """
import os, sys, time
import numpy as np
net, weights, batch, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
os.environ["GLOG_minloglevel"] = "3"
import caffe
n = caffe.Net(net, weights, caffe.TEST)
name = n.inputs[0]
n.blobs[name].reshape(batch, *n.blobs[name].data.shape[1:])
n.reshape()
n.blobs[name].data[...] = np.random.RandomState(0).randn(*n.blobs[name].data.shape)
best = 1e9
for _ in range(rounds + 1):
    start = time.perf_counter()
    n.forward()
    best = min(best, time.perf_counter() - start)
print(1e3 * best)
"""


def onnx_session(path: Path, threads: int) -> Callable[[Array], object]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x})


def by_torch(network: caffeport.Network, x: torch.Tensor, path: Path) -> int | None:
    """torch.onnx.export of the same net; its number of nodes, or None where it fails."""
    import onnx

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(network, (x,), dynamo=True, verbose=False)
            program.save(str(path))
    except Exception as error:
        print(f"torch.onnx.export failed: {str(error).splitlines()[0]}", file=sys.stderr)
        return None
    return len(onnx.load(str(path), load_external_data=False).graph.node)


def contenders(
    network: caffeport.Network, files: dict[str, Path], net: str, weights: str, threads: int, compiled: bool
) -> dict[str, Callable[[Array], object]]:
    import cv2

    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    folded = network.folded()
    opencv = cv2.dnn.readNetFromCaffe(net, weights)

    def by_opencv(x: Array) -> object:
        opencv.setInput(x)
        return opencv.forward()

    found: dict[str, Callable[[Array], object]] = {
        "Network": lambda x: network(torch.from_numpy(x)),
        "folded": lambda x: folded(torch.from_numpy(x)),
    }
    if compiled:
        graph = torch.compile(network)
        found["compiled"] = lambda x: graph(torch.from_numpy(x))
    found |= {name: onnx_session(path, threads) for name, path in files.items()}
    return found | {"OpenCV": by_opencv}


def fastest(runs: dict[str, Callable[[Array], object]], x: Array, rounds: int) -> dict[str, float]:
    """Milliseconds of the fastest run of each, taking `rounds` turns of three runs.

    Between turns is a pause: the threads of the one before wait actively for a while, and would take the cores.
    """
    best = dict.fromkeys(runs, float("inf"))
    with torch.inference_mode():
        for run in runs.values():
            run(x)
        for _ in range(rounds):
            for name, run in runs.items():
                time.sleep(0.1)
                for _ in range(3):
                    start = time.perf_counter()
                    run(x)
                    best[name] = min(best[name], 1e3 * (time.perf_counter() - start))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("net")
    parser.add_argument("weights")
    parser.add_argument("--caffe", help="a Python with real Caffe")
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--compile", action="store_true", help="torch.compile of the network too; needs a C++ compiler")
    arguments = parser.parse_args()
    network = caffeport.load(arguments.net, arguments.weights)
    shape = next(iter(network.inputs.values()))[1:]
    with tempfile.TemporaryDirectory() as folder:
        files = {"onnxruntime": Path(folder, "plain.onnx"), "onnxruntime, folded": Path(folder, "folded.onnx")}
        nodes = {
            name: caffeport.export_onnx(network, path, fold="folded" in name, prove=False).nodes
            for name, path in files.items()
        }
        torchs = Path(folder, "torch.onnx")
        nodes["torch.onnx.export"] = by_torch(network, torch.zeros(1, *shape), torchs)
        print("nodes:", ", ".join(f"{name} {count}" for name, count in nodes.items()))
        for threads in map(int, arguments.threads.split(",")):
            runs = contenders(network, files, arguments.net, arguments.weights, threads, arguments.compile)
            for batch in map(int, arguments.batches.split(",")):
                x = np.random.default_rng(0).standard_normal((batch, *shape)).astype(np.float32)
                also = (
                    {"torch.onnx, onnxruntime": onnx_session(torchs, threads)}
                    if batch == 1 and nodes["torch.onnx.export"]
                    else {}
                )
                best = fastest(runs | also, x, arguments.rounds)
                if arguments.caffe:
                    environment = {f"{library}_NUM_THREADS": str(threads) for library in ("OMP", "OPENBLAS", "MKL")}
                    command = [
                        arguments.caffe,
                        "-c",
                        CAFFE,
                        arguments.net,
                        arguments.weights,
                        str(batch),
                        str(arguments.rounds),
                    ]
                    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
                    if done.returncode == 0:
                        best["Caffe"] = float(done.stdout.split()[-1])
                line = ", ".join(f"{name} {ms:.1f} ({ms / best['folded']:.2f})" for name, ms in best.items())
                print(f"batch {batch}, threads {threads}: {line}", flush=True)


if __name__ == "__main__":
    main()
