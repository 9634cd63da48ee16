"""A 2-D convolution that keeps its weights in oneDNN's own layout between runs."""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PackedConv2d(nn.Conv2d):
    """nn.Conv2d for inference on a CPU: the same parameters, and a copy of the weight as oneDNN wants it.

    nn.Conv2d lays the weight out anew at each call. Here the copy is made at the first run, and again when the weight
    has changed; it takes as much memory as the weight does. With autograd, another device or type, in a compiler, and
    where this PyTorch cannot do it (WORKS), this is nn.Conv2d.
    """

    takes_relu = True  # a Network may have it do the ReLU after it
    _packed: tuple[Tensor, tuple[int, int], Tensor] | None = None  # weight, its address and version, the packed copy

    @classmethod
    def of(cls, conv: nn.Conv2d) -> "PackedConv2d":
        """A convolution with the parameters of `conv`, which stays as it is."""
        packed = cls.__new__(cls)
        packed.__dict__ = {**conv.__dict__, "_parameters": dict(conv._parameters)}
        return packed

    def plain(self) -> nn.Conv2d:
        """An nn.Conv2d with these parameters."""
        conv = nn.Conv2d.__new__(nn.Conv2d)
        conv.__dict__ = {**self.__getstate__(), "_parameters": dict(self._parameters)}
        return conv

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_packed"}

    def forward(self, x: Tensor, relu: bool = False) -> Tensor:
        """x (N, C, H, W) to (N, num_output, H', W'), max(0, .) of it where `relu` is set."""
        if WORKS and self._packs(x, self.weight):
            return self._convolve(x, relu)
        y = super().forward(x)
        return F.relu(y) if relu else y

    def _convolve(self, x: Tensor, relu: bool) -> Tensor:
        weight = self.weight
        held, place = self._packed, (weight.data_ptr(), 0 if weight.is_inference() else weight._version)
        if held is None or held[0] is not weight or held[1] != place:
            held = self._packed = (weight, place, self._pack(x, weight))
        return cast(
            Tensor,
            torch.ops.mkldnn._convolution_pointwise(
                x.contiguous(memory_format=torch.channels_last),
                held[2],
                self.bias,
                self.padding,
                self.stride,
                self.dilation,
                self.groups,
                "relu" if relu else "none",
                [],
                "",
            ),
        )

    def _packs(self, x: Tensor, weight: Tensor) -> bool:
        if torch.compiler.is_compiling() or torch.is_grad_enabled():
            return False
        if x.dtype != torch.float32 or x.dim() != 4 or not x.numel() or weight.dtype != x.dtype:
            return False
        if not (x.is_cpu and weight.is_cpu) or type(weight) is not nn.Parameter:
            return False
        # A few positions through a kernel of one pixel are a matrix product, for which PyTorch leaves oneDNN aside.
        few = x.shape[0] == 1 and (torch.get_num_threads() == 1 or x.numel() <= 20480)
        return not (few and self.kernel_size == (1, 1) and self.groups == 1)

    def _pack(self, x: Tensor, weight: Tensor) -> Tensor:
        reorder: Any = torch._C._nn.mkldnn_reorder_conv2d_weight
        dense = weight.detach().to_mkldnn()
        return cast(Tensor, reorder(dense, self.padding, self.stride, self.dilation, self.groups, x.shape))


@torch.no_grad()
def works() -> bool:
    """Whether this PyTorch has the operators above, which are not public, and they compute a convolution."""
    conv = PackedConv2d.of(nn.Conv2d(2, 3, 2, device="meta"))  # no random numbers are drawn for it
    conv.weight = nn.Parameter(torch.arange(-12.0, 12.0, dtype=torch.float32, device="cpu").reshape(3, 2, 2, 2))
    conv.bias = nn.Parameter(torch.ones(3, dtype=torch.float32, device="cpu"))
    x = torch.arange(24, dtype=torch.float32, device="cpu").reshape(1, 2, 3, 4)
    try:
        with torch.autocast("cpu", enabled=False):
            return torch.equal(conv._convolve(x, relu=True), F.conv2d(x, conv.weight, conv.bias).relu())
    except (AttributeError, TypeError, RuntimeError):  # no such operator, other arguments, no oneDNN
        return False


WORKS = works()
