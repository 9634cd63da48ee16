"""What all tests share: where the shared data lies, and how many tests used it."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]
FIXTURES = ROOT / "fixtures"
DIGITS = FIXTURES / "digits"
SHARED = (ROOT / "../shared").resolve()  # models of others and real Caffe's numbers for them; not part of the project

needs_shared = pytest.mark.needs_shared

# Tests run in parallel processes, and thread counts must not decide how fast one is. Read when torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")


# A busy machine may take its time.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs_shared: reads ../shared; skipped where that folder is absent")


def pytest_report_header() -> str:
    return f"shared data: {SHARED if SHARED.is_dir() else 'absent, so tests that need it are skipped'}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark everything in tests/shared, and skip what needs shared data where there are none."""
    for item in items:
        if Path(__file__).parent / "shared" in item.path.parents:
            item.add_marker(needs_shared)
        if item.get_closest_marker("needs_shared"):
            item.user_properties.append(("needs_shared", True))
            if not SHARED.is_dir():
                item.add_marker(pytest.mark.skip(reason="../shared is absent"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many tests of the shared data ran, so that a run which skipped them all cannot pass for a whole one."""
    counts = {
        outcome: sum(("needs_shared", True) in map(tuple, report.user_properties) for report in reports)
        for outcome in ("passed", "failed", "skipped")
        if (reports := [r for r in terminalreporter.stats.get(outcome, []) if hasattr(r, "user_properties")])
    }
    ran = counts.get("passed", 0) + counts.get("failed", 0)
    terminalreporter.write_line(f"tests of shared data: {ran} ran, {counts.get('skipped', 0)} skipped")
