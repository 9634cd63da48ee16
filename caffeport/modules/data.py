"""Constant sources."""

import numpy as np
import torch
from torch import Tensor, nn


class Constant(nn.Module):
    """Gives the same tensors at each call; they move and change type with the net, and are not saved."""

    def __init__(self, arrays: list[np.ndarray]) -> None:
        super().__init__()
        self.number = len(arrays)
        for i, array in enumerate(arrays):
            self.register_buffer(f"value{i}", torch.from_numpy(array), persistent=False)

    def forward(self) -> Tensor | tuple[Tensor, ...]:
        values: tuple[Tensor, ...] = tuple(getattr(self, f"value{i}") for i in range(self.number))
        return values[0] if self.number == 1 else values
