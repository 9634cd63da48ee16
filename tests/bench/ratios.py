"""How the ratios of `verify` are distributed over all nets with real Caffe's numbers, in four orders of summation.

    python -m tests.bench.ratios

DESIGN.md's thresholds are 16 for the root mean square, 32 for the largest error.
"""

import logging
import warnings

import numpy as np
import torch

import caffeport
from caffeport.verification import Report
from tests.shared.test_verification import FAMILIES, ZOO, cases, laid_out, zoo

SHARES = (50, 90, 99, 99.9, 100)
Rows = list[tuple[float, float, str]]


def reports(order: str) -> list[tuple[str, Report]]:
    small = [
        (f"{kind}/{name}", caffeport.verify(laid_out(net, order), path))
        for kind, family in FAMILIES
        for name, net, path in cases(kind, family)
    ]
    return small + [(f"zoo/{name}", report) for name in ZOO for report in zoo(name, order)]


def show(what: str, rows: Rows) -> None:
    for column, measure in enumerate(("rms", "largest")):
        values = [row[column] for row in rows]
        shares = " ".join(f"{x:6.2f}" for x in np.percentile(values, SHARES))
        print(f"  {what:12} {measure:8} {shares}  {rows[int(np.argmax(values))][2]}")


def main() -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    print(f"percentiles {', '.join(map(str, SHARES))}, and where the last one is")
    for order in ("1 thread", "2 threads", "1 thread, channels last", "2 threads, channels last"):
        torch.set_num_threads(int(order[0]))
        found = reports(order)
        failed = [f"{name}: {report.verdict}" for name, report in found if not report.passed]
        rows: dict[str, Rows] = {"alone": [], "at most": [], "segment": [], "from input": []}
        for name, report in found:
            for row in report.layers:
                place = f"{name} {row.layer}"
                if row.judgement and not row.fault:
                    what = "at most" if row.judgement.bound else row.judged
                    rows[what].append((row.judgement.ratio, row.judgement.ratio_max, place))
                if row.growth:
                    rows["from input"].append((row.growth.ratio, row.growth.ratio_max, place))
        print(f"{order}: {len(found)} nets, {len(failed)} fail {failed or ''}")
        for what, values in rows.items():
            show(f"{what} {len(values)}", values)


if __name__ == "__main__":
    main()
