"""A Network as a torch.export program (.pt2)."""

from io import BytesIO
from pathlib import Path

import torch
from torch import nn

from ..errors import InputError, UnsupportedLayer
from ..files import appearing
from ..network import Network
from .proof import random_inputs


class _Positional(nn.Module):
    """The network with its inputs by position, as torch.export wants them."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor | dict[str, torch.Tensor]:
        outputs: torch.Tensor | dict[str, torch.Tensor] = self.network(*inputs)
        return outputs


def export_pt2(network: Network, path: str | Path, *, batch: str | int | None = "N") -> Path:
    """Write the network for torch.export.load; the batch size stays open unless `batch` is a number or None.

    Raises UnsupportedLayer where torch cannot trace the net: where what follows depends on the numbers, as in NMS.
    """
    path = Path(path)
    if path.suffix != ".pt2":
        raise InputError(f"{path}: the name of a torch.export program ends in .pt2")
    sizes = {value.blob: value.shape for value in network.graph.needed}
    # torch takes a size of 1 for fixed, so an open one is traced with 2.
    first = 2 if isinstance(batch, str) else batch
    shapes = {
        name: tuple((n or 224) if axis or first is None else first for axis, n in enumerate(shape))
        for name, shape in sizes.items()
    }
    feeds = tuple(torch.from_numpy(array) for array in random_inputs(network, shapes=shapes).values())
    dim = torch.export.Dim(batch, min=1) if isinstance(batch, str) else None
    dynamic = ({0: dim},) * len(feeds) if dim is not None else None
    try:
        with torch.no_grad():
            program = torch.export.export(
                _Positional(network), feeds, dynamic_shapes={"inputs": dynamic} if dynamic else None, strict=False
            )
    except Exception as error:  # torch raises many kinds here
        raise UnsupportedLayer(f"torch.export cannot trace this net: {str(error).partition(chr(10))[0]}") from error
    archive = BytesIO()  # torch's own writer ends the process where the disk is full
    torch.export.save(program, archive)
    with appearing(path) as temporary:
        temporary.write_bytes(archive.getbuffer())
    return path
