"""In which arithmetic a layer is run: IEEE float32 on one thread, float64, or what the device under test does."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..graph import Step
from ..layers.base import Array
from ..network import Network
from ..plan import converted
from .yardstick import as_caffe

CPU = torch.device("cpu")
PRECISIONS = ("ieee", "tf32", "bf16", "fp16")
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Arithmetic:
    """A dtype on a device.

    threads  of the CPU; None: as many as the caller had
    tf32     products of matrices and convolutions see 10 bits of each factor, as on NVIDIA's cards since Ampere;
             elsewhere the factors are rounded before the layer runs
    caffe    layers are computed as Caffe does, where that errs more than ours
    """

    name: str
    dtype: torch.dtype = torch.float32
    device: torch.device = CPU
    threads: int | None = None
    tf32: bool = False
    caffe: bool = False

    @property
    def usual(self) -> bool:
        """Whether it is what a user gets who asks for nothing: float32 on the CPU."""
        return self.name == "ieee" and self.device.type == "cpu"

    def run(
        self, network: Network, step: Step, bottoms: Sequence[Tensor], module: nn.Module | None = None
    ) -> tuple[Tensor, ...]:
        """The tops of one layer, in this arithmetic, where it computes them. `module` stands in for the layer's own."""
        with self.settings():
            if (
                self.tf32
                and self.device.type != "cuda"
                and multiplies(own := module or network.get_submodule(network.names[step.key]))
            ):
                module, bottoms = weights_rounded(own, "tf32"), [rounded(x.float(), "tf32") for x in bottoms]
            if self.caffe and module is None:
                module = as_caffe(step, network.get_submodule(network.names[step.key]))
            try:
                return network.run_step(step, bottoms, self.dtype, self.device, module)
            except torch.OutOfMemoryError as error:
                raise InputError(_too_large(step, bottoms, self.device)) from error

    @contextmanager
    def settings(self) -> Iterator[None]:
        """Its threads and its TF32, inside."""
        threads = torch.get_num_threads()
        if self.threads not in (None, threads):
            torch.set_num_threads(self.threads)
        if self.tf32 and self.device.type == "cuda":
            _allow_tf32(True)
        try:
            yield
        finally:
            if self.threads not in (None, threads):
                torch.set_num_threads(threads)
            if self.tf32 and self.device.type == "cuda":
                _allow_tf32(False)


TRUTH = Arithmetic("float64", torch.float64)
YARDSTICK = Arithmetic("float32", threads=1, caffe=True)
BLOCK = 1 << 20  # numbers of a matrix that are converted at a time
BAND = 1 << 18  # numbers that a convolution copies at a time


class _LinearInBlocks(nn.Module):
    """A Linear in float64, some outputs at a time: a large weight is never there as a whole in float64."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.held = (linear,)  # in a tuple it is no child, which would be converted

    def forward(self, x: Tensor) -> Tensor:
        (linear,) = self.held
        rows = max(1, BLOCK // linear.in_features)
        weights = torch.split(linear.weight, rows)
        biases = [None] * len(weights) if linear.bias is None else torch.split(linear.bias, rows)
        return torch.cat(
            [
                nn.functional.linear(x, w.double(), b if b is None else b.double())
                for w, b in zip(weights, biases, strict=True)
            ],
            dim=-1,
        )


class _ConvolutionInBands(nn.Module):
    """A 2-D convolution some rows of the top at a time. In float64 torch copies the bottom once for each place of the
    kernel, which would take many times the memory of bottom and top; in bands it is as fast or faster.
    """

    def __init__(self, own: nn.Conv2d) -> None:
        super().__init__()
        self.own = own

    def forward(self, x: Tensor) -> Tensor:
        own: nn.Conv2d = self.own
        reach = [d * (k - 1) + 1 for k, d in zip(own.kernel_size, own.dilation, strict=True)]
        padding = [int(p) for p in own.padding]
        axes = zip(x.shape[2:], reach, padding, own.stride, strict=True)
        height, width = ((size + 2 * p - r) // s + 1 for size, r, p, s in axes)
        copied = x.shape[1] // own.groups * math.prod(own.kernel_size) * width  # for one row of the top
        rows = max(1, BAND // max(copied, 1))
        if rows >= height:
            return own(x)  # type: ignore[no-any-return]
        x = nn.functional.pad(x, (0, 0, padding[0], padding[0])) if padding[0] else x
        top = x.new_empty(x.shape[0], own.weight.shape[0], height, width)
        for first in range(0, height, rows):
            last = min(first + rows, height)
            band = x[:, :, first * own.stride[0] : (last - 1) * own.stride[0] + reach[0]]
            top[:, :, first:last] = nn.functional.conv2d(
                band, own.weight, own.bias, own.stride, (0, padding[1]), own.dilation, own.groups
            )
        return top


def in_float64(own: nn.Module, tied: bool) -> nn.Module:
    """The module in float64 on the CPU. `tied`: it shares parameters with others under another shape."""
    if tied or own._forward_hooks or own._forward_pre_hooks:
        return converted(own, TRUTH.dtype, TRUTH.device)
    if type(own) is nn.Linear and own.weight.is_cpu and own.weight.numel() > BLOCK:
        return _LinearInBlocks(own)
    double = converted(own, TRUTH.dtype, TRUTH.device)
    return _ConvolutionInBands(double) if type(double) is nn.Conv2d and double.kernel_size[0] > 1 else double


def under_test(device: str | torch.device, precision: str) -> Arithmetic:
    """What the user runs. Raises InputError for a device that is not there and for an unknown precision."""
    if precision not in PRECISIONS:
        raise InputError(f"precision {precision!r} is none of {', '.join(PRECISIONS)}")
    try:
        place = torch.device(device)
        torch.zeros(1, device=place).cpu()  # not so of the meta device
    except (RuntimeError, AssertionError, TypeError) as error:
        raise InputError(f"device {str(device)!r} cannot be used here: {str(error).splitlines()[0]}") from error
    return Arithmetic(precision, _DTYPES.get(precision, torch.float32), place, tf32=precision == "tf32")


@contextmanager
def deterministic() -> Iterator[None]:
    """IEEE float32 and algorithms that give the same numbers at each run, inside; everything as it was, afterwards."""
    cudnn = torch.backends.cudnn
    before = (torch.backends.cuda.matmul.allow_tf32, cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark)
    algorithms = torch.get_deterministic_debug_mode()
    _allow_tf32(False)
    cudnn.deterministic, cudnn.benchmark = True, False
    torch.set_deterministic_debug_mode("warn")  # use_deterministic_algorithms imports torch's compiler: half a second
    memory: Any = torch.utils.deterministic
    fill = memory.fill_uninitialized_memory
    memory.fill_uninitialized_memory = False  # a pass over every new array, which is then written
    try:
        yield
    finally:
        memory.fill_uninitialized_memory = fill
        torch.backends.cuda.matmul.allow_tf32, cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark = before
        torch.set_deterministic_debug_mode(algorithms)


def _allow_tf32(allowed: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def _too_large(step: Step, bottoms: Sequence[Tensor], device: torch.device) -> str:
    batch = max((x.shape[0] for x in bottoms if x.dim()), default=1)
    each = sum(x.numel() * x.element_size() for x in bottoms) // max(batch, 1)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
    # A layer holds its bottoms, its tops and a workspace: four times the bottoms covers what was seen.
    fits = min(batch - 1, free // (4 * each)) if each else 0
    hint = f"a batch of {fits} would fit" if fits else "even one item would not fit; verify it on the CPU"
    return f"{step.layer}: {device} has not enough memory for a batch of {batch}; {hint}"


def numbers(tensor: Tensor) -> Array:
    """As NumPy's, which has no bfloat16."""
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


# ---- fewer bits


def rounded(x: Tensor, form: str) -> Tensor:
    """float32 rounded to nearest, ties to even, in "fp16", "bf16" or "tf32" (10 bits after the point), as float32
    again.
    """
    if form in _DTYPES:
        return x.to(_DTYPES[form]).to(x.dtype)
    bits = x.float().contiguous().view(torch.int32)
    return ((bits + 0xFFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32).to(x.dtype)


def multiplies(module: nn.Module) -> bool:
    """Whether the module multiplies matrices, which is what TF32 is about: it has a weight of two axes or more."""
    return any(parameter.dim() > 1 for parameter in module.parameters())


def weights_rounded(module: nn.Module, form: str, axes: int = 2) -> nn.Module:
    """A copy of the module with its parameters of at least so many axes rounded; 2 leaves biases alone."""
    chosen = (p for p in module.parameters() if p.dim() >= axes)
    weights = {id(p): nn.Parameter(rounded(p.detach(), form), requires_grad=False) for p in chosen}
    others = {id(t): t for t in (*module.parameters(), *module.buffers()) if id(t) not in weights}
    return deepcopy(module, {**others, **weights})
