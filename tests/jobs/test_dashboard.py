"""`dashboard`: the workspace that the real library saves, read back from a server that speaks the protocol."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bloodcell.tracking.names import METRICS
from bloodcell.tracking.panels import SECTIONS
from shards.errors import BadInput
from tests.bloodcell.wandb_server import KEY, Server
from tests.conftest import Done, command
from tests.jobs.conftest import verb

ROOT = Path(__file__).resolve().parents[2]


def dashboard(server: Server, home: Path, *words: object) -> Done:
    """Run the verb with the key in the environment."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    variables |= {**server.variables, "HOME": str(home), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command("dashboard", *words, "--json"), capture_output=True, text=True, env=variables, timeout=240, check=False
    )
    return Done(done.returncode, done.stdout, done.stderr)


def test_what_was_saved_is_there_and_is_replaced_by_the_next_call(tmp_path: Path) -> None:
    pytest.importorskip("wandb_workspaces")
    with Server() as server:
        server.projects.add("cells")
        first = dashboard(server, tmp_path, "--project", "cells")
        assert first.code == 0, first.err
        assert first.json["new"]
        assert first.json["url"].endswith("/me/cells?nw=bloodcell")
        again = dashboard(server, tmp_path, "--project", "cells")
        assert (again.code, again.json["new"]) == (0, False)
        other = dashboard(server, tmp_path, "--project", "cells", "--name", "night watch")
        assert other.json["new"]
        assert not server.asked
        assert [kept["displayName"] for kept in server.saved.values()] == ["bloodcell", "night watch"]
    kept = server.saved["v0"]
    assert (kept["entityName"], kept["projectName"]) == ("me", "cells")
    sections = json.loads(kept["spec"])["section"]["panelBankConfig"]["sections"]
    assert [section["name"] for section in sections] == [section.question for section in SECTIONS]
    drawn = set()
    for section, wanted in zip(sections, SECTIONS, strict=True):
        assert len(section["panels"]) == len(wanted.panels)
        for panel in section["panels"]:
            config = panel["config"]
            assert config.get("xAxis", "step") == "step"
            drawn |= set(config.get("metrics", [])) | set(config.get("mediaKeys", []))
    assert drawn == {name for section in SECTIONS for one in section.panels for name in one.metrics}
    assert KEY not in first.out + first.err + kept["spec"]


def test_a_project_that_is_not_there_and_a_server_that_is_gone_are_one_line(tmp_path: Path) -> None:
    pytest.importorskip("wandb_workspaces")
    with Server() as server:
        done = dashboard(server, tmp_path, "--project", "nothing")
    assert done.code == 2, done.err
    assert "no such W&B project" in done.err
    gone = dashboard(server, tmp_path, "--patience", 3)
    assert gone.code == 3, gone.err
    assert "Traceback" not in done.err + gone.err


def test_a_dry_run_names_every_metric_and_loads_no_client() -> None:
    code = "import sys; from jobs.cli import main; main(['dashboard', '--dry-run']); assert 'wandb' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert set(METRICS) <= set(re.findall(r"[\w/]+", done.stdout))


def test_without_a_key_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(BadInput, match="no API key is configured"):
        verb("dashboard")


def test_the_page_about_watching_knows_every_panel() -> None:
    page = (ROOT / "docs" / "watching.md").read_text()
    for section in SECTIONS:
        assert f"## {section.question}" in page
        for panel in section.panels:
            assert f"| {panel.title} | {', '.join(f'`{name}`' for name in panel.metrics)} | {panel.normal} |" in page
            assert f"| {panel.act} |" in page
