"""Sums, products and maxima of several tensors."""

import torch
from torch import Tensor, nn


class Sum(nn.Module):
    """Sum of coeff_i * x_i (coefficients default to 1).

    A coefficient of 0 leaves its x out, even where that is infinite.
    """

    def __init__(self, coeff: tuple[float, ...] = (), skip_first: bool = False) -> None:
        super().__init__()
        self.coeff, self.skip_first = coeff, skip_first

    def extra_repr(self) -> str:
        return ", ".join(f"{c:g}" for c in self.coeff)

    def forward(self, *xs: Tensor) -> Tensor:
        terms = list(zip(xs, self.coeff or (1.0,) * len(xs), strict=True))[self.skip_first :]
        total: Tensor | None = None
        for x, c in terms:
            if c == 0:
                continue
            term = x if c == 1 else x * c
            total = term if total is None else total + term
        if total is None:
            return torch.zeros_like(xs[0])
        return total.clone() if any(total is x for x in xs) else total


class Product(nn.Module):
    """Product of all inputs."""

    def forward(self, *xs: Tensor) -> Tensor:
        total = xs[0]
        for x in xs[1:]:
            total = total * x
        return total


class Maximum(nn.Module):
    """Largest of all inputs."""

    def __init__(self, skip_first: bool = False) -> None:
        super().__init__()
        self.skip_first = skip_first

    def forward(self, *xs: Tensor) -> Tensor:
        xs = xs[self.skip_first :]
        largest = xs[0]
        for x in xs[1:]:
            largest = torch.maximum(largest, x)
        return largest if len(xs) > 1 else largest.clone()
