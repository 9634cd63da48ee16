"""Loading and running against the floor, as ratios in one process: `python tests/bench/load.py WEIGHTS [PROTOTXT]`.

WEIGHTS is the 227 MB file that ../shared/nets/memnet/make_weights.py writes. Prints, for `load` of the .caffemodel and
of the converted folder, the minimum of nine alternating runs over that of `numpy.fromfile` plus one copy of the bytes,
and the growth of the peak resident size over the file's size, each in a child process of its own.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import caffeport
from caffeport.store import convert

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
RUNS = 9

PEAK = """
import resource, sys
import torch, caffeport, caffeport.loading, caffeport.store
def now():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
caffeport.load(sys.argv[1])                      # a small net first: what a first call imports is not the file's
open("/proc/self/clear_refs", "w").write("5")    # reset the peak
before = now()
network = caffeport.load(*sys.argv[2:])
peak = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(peak - before)
"""


def floor(path: Path) -> None:
    np.fromfile(path, np.uint8).copy()


def peak(*files: Path) -> int:
    small = Path(__file__).resolve().parents[2] / "fixtures" / "digits" / "digits.caffemodel"
    output = subprocess.run(
        [sys.executable, "-c", PEAK, str(small), *map(str, files)], capture_output=True, text=True, check=True
    )
    return int(output.stdout)


def main(weights: Path, net: Path) -> None:
    size = weights.stat().st_size
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "memnet"
        convert(net, weights, folder)
        cases = {
            "floor": lambda: floor(weights),
            "load(prototxt, caffemodel)": lambda: caffeport.load(net, weights),
            "load(folder)": lambda: caffeport.load(folder),
        }
        best = dict.fromkeys(cases, float("inf"))
        for _ in range(RUNS):
            for name, run in cases.items():
                start = time.perf_counter()
                run()
                best[name] = min(best[name], time.perf_counter() - start)
        for name, seconds in best.items():
            print(f"{name:30} {1000 * seconds:7.1f} ms   {seconds / best['floor']:.2f} of the floor")
        for name, files in {"load(prototxt, caffemodel)": (net, weights), "load(folder)": (folder,)}.items():
            print(f"{name:30} peak grows by {peak(*files) / size:.2f} of the file")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else SHARED / "nets/memnet/deploy.prototxt")
