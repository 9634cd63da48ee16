"""Matrix products and look-ups in Caffe's layouts."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class TransposedLinear(nn.Module):
    """x W + b with W (inputs, outputs), the layout that tied decoders share with their encoder."""

    def __init__(self, inputs: int, outputs: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, outputs))
        self.bias = nn.Parameter(torch.empty(outputs)) if bias else None

    def extra_repr(self) -> str:
        inputs, outputs = self.weight.shape
        return f"in_features={inputs}, out_features={outputs}, bias={self.bias is not None}"

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.t(), self.bias)


class Embed(nn.Module):
    """weight[int(x)] + bias; an index outside of the table is an error (Caffe reads foreign memory)."""

    def __init__(self, rows: int, outputs: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, outputs))
        self.bias = nn.Parameter(torch.empty(outputs)) if bias else None

    def extra_repr(self) -> str:
        rows, outputs = self.weight.shape
        return f"{rows}, {outputs}, bias={self.bias is not None}"

    def forward(self, x: Tensor) -> Tensor:
        y = F.embedding(x.long(), self.weight)
        return y if self.bias is None else y + self.bias
