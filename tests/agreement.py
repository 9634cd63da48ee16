"""When two arrays agree, for tests on real Caffe's numbers; and the arrays of a file."""

from pathlib import Path

import numpy as np

from caffeport.layers import Array

REL_L2 = 1e-5  # float32 through a few layers
LARGEST = 1e-4  # largest error of one element, as a share of the largest magnitude
ZERO = 1e-6  # largest magnitude where Caffe has only zeros


def disagreement(got: Array, want: Array, *, exact: bool = False) -> str | None:
    """What is wrong with `got`, or None: its shape, NaN or Inf elsewhere, or numbers too far off; `exact`: any bit."""
    if got.shape != want.shape:
        return f"shape {got.shape}, Caffe has {want.shape}"
    if exact:
        return None if np.array_equal(got, want, equal_nan=True) else "differs, but should be equal in every value"
    finite = np.isfinite(want)
    if not np.array_equal(got[~finite], want[~finite], equal_nan=True):
        return "NaN or Inf at other places"
    ours, theirs = got[finite].astype(np.float64), want[finite].astype(np.float64)
    if not ours.size:
        return None
    errors, largest = np.abs(ours - theirs), np.abs(theirs).max()
    if not largest:
        return None if errors.max() <= ZERO else f"{errors.max():.1e} where Caffe has only zeros"
    rel_l2 = float(np.linalg.norm(errors) / np.linalg.norm(theirs))
    if rel_l2 > REL_L2 or errors.max() > LARGEST * largest:
        worst = int(errors.argmax())
        return (
            f"relative L2 error {rel_l2:.1e}, allowed {REL_L2:.0e}; worst {errors[worst] / largest:.1e} of the "
            f"largest, allowed {LARGEST:.0e}: {ours[worst]} for {theirs[worst]}"
        )
    return None


def arrays(path: Path) -> dict[str, Array]:
    """All arrays of an .npz file, which is closed again."""
    with np.load(path) as file:
        return dict(file)
