"""Overlap of boxes and greedy non-maximum suppression, shared by detection and region proposals."""

import torch
from torch import Tensor
from torch.nn import functional as F

PAIRS = 1 << 19  # overlaps that are computed at once, about
BLOCK = 32  # boxes of a group that are settled at once, at least


def overlap(a: Tensor, b: Tensor, extra: float, least: float) -> Tensor:
    """Intersection over union of boxes a (4, G, M) with b (4, G, N), corners along the first axis: (G, M, N).

    extra  added to each side: 1 where corners are whole pixels and inclusive, else 0
    least  a common side not above this, `extra` included, counts as no overlap
    """
    sides = []
    for low, high in ((0, 2), (1, 3)):
        side = torch.minimum(a[high, :, :, None], b[high, :, None])
        side -= torch.maximum(a[low, :, :, None], b[low, :, None])
        sides.append(F.threshold(side.add_(extra) if extra else side, least, 0.0, inplace=True))
    common = sides[0].mul_(sides[1])
    area_a, area_b = ((x[2] - x[0] + extra) * (x[3] - x[1] + extra) for x in (a, b))
    union = (area_a[:, :, None] + area_b[:, None]).sub_(common)
    iou: Tensor = common.div_(union).nan_to_num_(0.0)  # NaN: empty boxes, or infinite ones
    return iou


def front(mask: Tensor, *rows: Tensor) -> list[Tensor]:
    """Move what `mask` (G, M) marks to the front of each row, in order, and cut to the longest.

    rows are (..., G, M); what comes back is the mask, then the rows.
    """
    longest = int(mask.sum(1).max()) if mask.numel() else 0
    order = (~mask).to(torch.uint8).argsort(dim=1, stable=True)[:, :longest]
    return [x.gather(-1, order.expand(*x.shape[:-2], *order.shape)) for x in (mask, *rows)]


def thresholds_by_kept(count: int, threshold: float, eta: float, like: Tensor) -> Tensor:
    """The threshold after 0, 1, ... `count` kept boxes: each takes it times eta, while it is above 0.5."""
    factors = torch.full((count + 1,), eta, dtype=like.dtype, device=like.device)
    factors[0] = threshold
    values = factors.cumprod(0)
    return values[torch.arange(count + 1, device=like.device).clamp(max=(values > 0.5).sum())]


def nms(
    boxes: Tensor,
    valid: Tensor,
    threshold: float,
    extra: float = 0.0,
    least: float = 0.0,
    inclusive: bool = False,
    eta: float = 1.0,
    limit: int | None = None,
) -> Tensor:
    """Greedy non-maximum suppression in each of G groups: the mask (G, M) of what is kept.

    boxes      (4, G, M), corners along the first axis, best box first
    valid      (G, M), which of them count
    threshold  a box goes when its overlap with a kept one is above this (`inclusive`: or equal)
    eta        the threshold shrinks by this factor after each kept box, while it is above 0.5
    limit      may stop once each group has kept this many

    "Kept unless a kept box before it overlaps" has one solution. It is found block by block, by repeating the rule from
    "all kept" until nothing changes: as many rounds as the longest chain of boxes, not as there are boxes.
    """
    _, groups, count = boxes.shape
    share = max(1, 32 * PAIRS // (BLOCK * max(count, 1)))
    if groups > share:  # bounds memory at any number of groups
        pieces = zip(torch.split(boxes, share, 1), torch.split(valid, share), strict=True)
        return torch.cat([nms(b, v, threshold, extra, least, inclusive, eta, limit) for b, v in pieces])
    boxes = boxes.detach()
    kept_all = torch.zeros_like(valid)
    exceeds = torch.ge if inclusive else torch.gt
    thresholds = thresholds_by_kept(count, threshold, eta, boxes)
    done = torch.zeros(groups, 1, dtype=torch.long, device=boxes.device)  # boxes kept so far
    index = torch.arange(count, device=boxes.device).expand(groups, count)
    worst = boxes.new_zeros(groups, count)  # largest overlap with a box kept so far
    valid, boxes, index, worst = front(valid, boxes, index, worst)
    while index.shape[1]:
        block = max(BLOCK, PAIRS // (groups * index.shape[1]))
        head, alive = boxes[:, :, :block], valid[:, :block]
        pairs = overlap(head, head, extra, least).triu_(1)  # (G, earlier, later)
        kept = alive
        while True:
            most = torch.maximum(worst[:, :block], (pairs * kept[:, :, None]).amax(1))
            new = alive & ~exceeds(most, thresholds[done + kept.cumsum(1) - kept.long()])
            if torch.equal(new, kept):
                break
            kept = new
        kept_all.scatter_(1, index[:, :block], kept)
        done = done + kept.sum(1, keepdim=True)
        if index.shape[1] <= block or (limit is not None and int(done.min()) >= limit):
            break
        mask, chosen = front(kept, head)
        chosen[:2].masked_fill_(~mask, float("inf"))  # what fills up a row overlaps nothing
        chosen[2:].masked_fill_(~mask, float("-inf"))
        boxes, index, worst, valid = boxes[:, :, block:], index[:, block:], worst[:, block:], valid[:, block:]
        if chosen.shape[2]:
            worst = torch.maximum(worst, overlap(chosen, boxes, extra, least).amax(1))
        valid, boxes, index, worst = front(valid & ~exceeds(worst, thresholds[done]), boxes, index, worst)
    return kept_all
