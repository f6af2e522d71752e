"""The spikes that decisions rest on still run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import ROOT

SPIKE = ROOT / "docs" / "adr" / "spikes" / "plain_task.py"


@pytest.mark.parametrize("ledger", ["sqlite", "postgres"])
def test_a_plain_task_gets_claim_fence_and_outcome(
    ledger: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """ADR 0008: an unmodified ``@app.task`` function is durable, without a result backend."""
    url = (
        f"sqlite:///{tmp_path / 'ledger.db'}"
        if ledger == "sqlite"
        else request.getfixturevalue("postgres_url")
    )
    done = subprocess.run(
        [sys.executable, str(SPIKE), url],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    shown = [line.split()[0] for line in done.stdout.splitlines()]
    assert [word for word in shown if word in ("outcome", "claim", "fence", "plain")] == [
        "outcome",
        "outcome",
        "claim",
        "fence",
        "plain",
    ]
