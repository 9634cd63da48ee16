"""The forward pass against the same net written by hand: `python tests/bench/forward.py MEMNET_WEIGHTS`.

Prints the ratio of the best of alternating runs, at one and two threads, and the peak resident growth of both.
"""

import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn

import caffeport

SHARED = Path(__file__).resolve().parents[2].parent / "shared"


class MemNet(nn.Module):
    """MemNet as a person would type it."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 96, 11, 4), nn.ReLU(True), nn.MaxPool2d(3, 2), nn.LocalResponseNorm(5),
            nn.Conv2d(96, 256, 5, padding=2, groups=2), nn.ReLU(True), nn.MaxPool2d(3, 2), nn.LocalResponseNorm(5),
            nn.Conv2d(256, 384, 3, padding=1), nn.ReLU(True),
            nn.Conv2d(384, 384, 3, padding=1, groups=2), nn.ReLU(True),
            nn.Conv2d(384, 256, 3, padding=1, groups=2), nn.ReLU(True), nn.MaxPool2d(3, 2),
        )  # fmt: skip
        self.head = nn.Sequential(
            nn.Linear(9216, 4096),
            nn.ReLU(True),
            nn.Dropout(),
            nn.Linear(4096, 4096),
            nn.ReLU(True),
            nn.Dropout(),
            nn.Linear(4096, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).flatten(1))


class Bottleneck(nn.Module):
    def __init__(self, channels: int, width: int, out: int, stride: int, project: bool) -> None:
        super().__init__()

        def unit(i: int, o: int, k: int, s: int = 1, relu: bool = True) -> list[nn.Module]:
            return [nn.Conv2d(i, o, k, s, k // 2, bias=True), nn.BatchNorm2d(o), *([nn.ReLU(True)] if relu else [])]

        self.main = nn.Sequential(
            *unit(channels, width, 1, stride), *unit(width, width, 3), *unit(width, out, 1, relu=False)
        )
        self.short = nn.Sequential(*unit(channels, out, 1, stride, relu=False)) if project else nn.Identity()
        self.relu = nn.ReLU(True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.main(x) + self.short(x))


class OpenNsfw(nn.Module):
    """Yahoo's thin ResNet-50, one affine BatchNorm2d for each BatchNorm and Scale."""

    def __init__(self) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        channels = 64
        for stage, (width, count) in enumerate([(32, 3), (64, 4), (128, 6), (256, 3)]):
            for i in range(count):
                blocks.append(Bottleneck(channels, width, 4 * width, 2 if i == 0 and stage else 1, i == 0))
                channels = 4 * width
        self.stem = nn.Sequential(
            nn.Conv2d(3, 64, 7, 2, 3), nn.BatchNorm2d(64), nn.ReLU(True), nn.MaxPool2d(3, 2, ceil_mode=True)
        )
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(1024, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem(x))
        return torch.softmax(self.head(nn.functional.avg_pool2d(x, 7).flatten(1)), 1)


def best(nets: dict[str, nn.Module], x: Tensor, runs: int) -> dict[str, float]:
    result = dict.fromkeys(nets, float("inf"))
    with torch.inference_mode():
        for net in nets.values():
            net(x)
        for _ in range(runs):
            for name, net in nets.items():
                start = time.perf_counter()
                net(x)
                result[name] = min(result[name], time.perf_counter() - start)
    return result


def peak(name: str, which: str, memnet: str) -> int:
    """Growth of the peak resident size over one forward pass, in bytes, in a process of its own."""
    return int(
        subprocess.run(
            [sys.executable, __file__, memnet, name, which], capture_output=True, text=True, check=True
        ).stdout
    )


def pair(name: str, memnet: str) -> tuple[nn.Module, nn.Module, Tensor]:
    if name == "MemNet, batch 10":
        return (
            caffeport.load(SHARED / "nets/memnet/deploy.prototxt", memnet),
            MemNet().eval(),
            torch.randn(10, 3, 227, 227),
        )
    folder = SHARED / "zoo/open_nsfw"
    return (
        caffeport.load(folder / "deploy.prototxt", folder / "weights.caffemodel"),
        OpenNsfw().eval(),
        torch.randn(1, 3, 224, 224),
    )


def main(memnet: str) -> None:
    for name in ("MemNet, batch 10", "open_nsfw, batch 1"):
        network, by_hand, x = pair(name, memnet)
        for threads in (1, 2):
            torch.set_num_threads(threads)
            times = best({"network": network, "by hand": by_hand}, x, 15 if "MemNet" in name else 60)
            ratio = times["network"] / times["by hand"]
            print(
                f"{name}, {threads} thread(s): {1000 * times['network']:.1f} ms, {ratio:.2f} of the net written by hand"
            )
        ratio = peak(name, "network", memnet) / peak(name, "by hand", memnet)
        print(f"{name}: peak memory of a pass {ratio:.2f} of that net's")


if __name__ == "__main__":
    if len(sys.argv) == 2:
        main(sys.argv[1])
    else:
        network, by_hand, x = pair(sys.argv[2], sys.argv[1])
        net = network if sys.argv[3] == "network" else by_hand
        torch.set_num_threads(1)
        with torch.inference_mode():
            net(x[:1])
            Path("/proc/self/clear_refs").write_text("5")
            before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
            net(x)
        high = next(
            int(line.split()[1])
            for line in Path("/proc/self/status").read_text().splitlines()
            if line.startswith("VmHWM")
        )
        print(high * 1024 - before)
