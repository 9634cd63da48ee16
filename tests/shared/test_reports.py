"""Small nets made from real users' reports (../shared/reports): each does what its case asks for."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, SHARED

REPORTS = SHARED / "reports"
CASES = sorted(path.parent.name for path in REPORTS.glob("cases/*/case.json")) or ["absent"]


@pytest.mark.parametrize("case", CASES)
def test_report(case: str, tmp_path: Path) -> None:
    done = tmp_path / "result.json"
    command = [sys.executable, str(REPORTS / "run.py"), "--only", case, "--json", str(done)]
    run = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.exists(), run.stderr
    results = {result["case"]: result for result in json.loads(done.read_text())}
    assert results[case]["status"] == "passed", results[case]["why"]
