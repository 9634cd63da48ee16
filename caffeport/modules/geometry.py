"""Sizes and windows, shared by the shape rules and the modules. No torch here."""

import math


def pooled_size(size: int, kernel: int, stride: int, pad: int, clip: bool, floor: bool = False) -> int:
    """Number of windows that Caffe places along one axis; all arguments in pixels.

    Rounds up (unless `floor`), so the last window may hang over the far edge. With `clip` (some axis has padding) a
    last window is
    dropped that would start beyond image + pad; without, it stays and is empty (size 4, kernel 2, stride 4: 2 windows).
    """
    steps = (size + 2 * pad - kernel) / stride
    n = (math.floor(steps) if floor else math.ceil(steps)) + 1
    if clip and (n - 1) * stride >= size + pad:
        n -= 1
    return n


def torch_pools_alike(kernel: tuple[int, ...], stride: tuple[int, ...], pad: tuple[int, ...]) -> bool:
    """Whether torch's own pooling, with ceil_mode, places Caffe's windows.

    It refuses a pad above half the kernel, and never places a window outside of the image.
    """
    wide = any(p > k // 2 for p, k in zip(pad, kernel, strict=True))
    return not wide and (any(pad) or all(s <= k for s, k in zip(stride, kernel, strict=True)))


def spp_window(size: int, bins: int) -> tuple[int, int]:
    """Kernel (also the stride) and pad with which Caffe cuts `size` pixels into `bins`."""
    kernel = -(-size // bins)
    return kernel, (kernel * bins - size + 1) // 2


def reshaped(shape: tuple[int | None, ...], dims: tuple[int, ...], axis: int, num_axes: int) -> tuple[int | None, ...]:
    """Shape after Caffe's Reshape: the axes from `axis` on (`num_axes` of them, -1: all) are replaced by `dims`.

    A dim of 0 copies the shape's own at that place, one -1 is what is left. Raises ValueError where the counts differ.
    """
    start = axis if axis >= 0 else len(shape) + axis + 1
    end = len(shape) if num_axes == -1 else start + num_axes
    if not 0 <= start <= len(shape) or not start <= end <= len(shape):
        raise ValueError(f"axis {axis} and num_axes {num_axes} do not fit a bottom of {len(shape)} axes")
    middle: list[int | None] = []
    for i, dim in enumerate(dims):
        if dim == 0 and start + i >= len(shape):
            raise ValueError(f"dim {i} is 0, but the bottom has no axis {start + i} to copy")
        middle.append(shape[start + i] if dim == 0 else dim)
    result: list[int | None] = [*shape[:start], *middle, *shape[end:]]
    known, wanted = math.prod(n for n in shape if n is not None), math.prod(n for n in result if n not in (None, -1))
    if None not in shape:
        if -1 in result:
            if wanted == 0 or known % wanted:
                raise ValueError(f"{known} values do not divide into {tuple(result)}")
            result[result.index(-1)] = known // wanted
        elif known != wanted:
            raise ValueError(f"{known} values do not fit {tuple(result)}, which holds {wanted}")
    elif -1 in result:
        # Open axes that are copied cancel out; the rest decides, unless an open axis went into the -1.
        copied = sum(n is None for n in result)
        inferred = (
            known // wanted if copied == sum(n is None for n in shape) and wanted and known % wanted == 0 else None
        )
        result[result.index(-1)] = inferred
    return tuple(result)


def interp_size(size: int | None, wanted: int | None, zoom: int | None, shrink: int | None) -> int | None:
    """Length of one axis after DeepLab's Interp; `wanted` is height or width, None what is not given.

    zoom or shrink alone go before `wanted`, which goes before both together. None where the size is open.
    """
    if wanted is not None and (zoom is None) == (shrink is None):
        return wanted
    if size is None:
        return None
    shrunk = (size - 1) // (shrink or 1) + 1
    return shrunk + (shrunk - 1) * ((zoom or 1) - 1)
