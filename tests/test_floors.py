"""The house: which room may import which, what the login-node floor may load, what the repository may hold."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.cli import VERBS

ROOT = Path(__file__).resolve().parents[1]
FLOORS = ["shards", "bloodcell", "jobs"]  # each imports only what stands before it
ROOMS = [  # inside bloodcell, in the same way
    {"config", "ranks"},
    {"tracking", "runfolder"},
    {"data", "models"},
    {"evaluation"},
    {"engine"},
    {"explain", "report", "predict", "export", "app"},
]
SOURCES = sorted(path for floor in FLOORS for path in (ROOT / floor).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Return the dotted names that a file imports anywhere, functions included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room(dotted: str) -> int | None:
    """Return the height of a module inside bloodcell, or None if it is outside."""
    parts = dotted.split(".")
    if parts[0] != "bloodcell" or len(parts) < 2:
        return None
    return next((height for height, names in enumerate(ROOMS) if parts[1] in names), None)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_downwards(path: Path) -> None:
    parts = path.relative_to(ROOT).with_suffix("").parts
    below = FLOORS[: FLOORS.index(parts[0]) + 1]
    for name in imported(path):
        top = name.split(".")[0]
        assert top not in FLOORS or top in below, f"{path} imports {name}"
        mine, theirs = room(".".join(parts)), room(name)
        if mine is not None and theirs is not None:
            assert theirs <= mine, f"{path} imports {name}"
        if parts[0] == "shards":
            assert top not in ("torch", "torchvision", "timm", "nvidia", "deepspeed"), f"{path} imports {name}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_says_what_it_does_and_stays_readable(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    summary = ast.get_docstring(ast.parse(text))
    assert summary
    assert summary.splitlines()[0].endswith((".", ":", "?"))
    assert len(text.splitlines()) <= 330, "split this file"


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_loads_no_torch(verb: str) -> None:
    code = (
        "import sys, jobs.cli\n"
        f"try: jobs.cli.main([{verb!r}, '--help'] if {verb!r} else ['--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'torch', 'nvidia.dali', 'wandb', 'timm', 'deepspeed'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout


def test_collectives_are_not_hidden_behind_the_first_rank() -> None:
    """A collective inside `if ranks.first` hangs the others: such code goes through agree.on_first_rank."""
    calls = {"all_reduce", "all_gather", "barrier", "broadcast", "gather", "averaged", "state_dict", "on_first_rank"}
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.If)
                and "ranks.first" in ast.unparse(node.test)
                and "not" not in ast.unparse(node.test)
            ):
                names = {
                    n.func.attr
                    for b in node.body
                    for n in ast.walk(b)
                    if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)
                }
                names |= {
                    n.func.id
                    for b in node.body
                    for n in ast.walk(b)
                    if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)
                }
                assert not names & calls, f"{path}:{node.lineno}"


def test_the_repository_speaks_of_itself_alone() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], capture_output=True, text=True, cwd=ROOT, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    hosts = re.compile("|".join(["pypi" + r"\.org", "python" + "hosted", "index" + "-url", "registry" + r"\.npm"]))
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if not path.is_file() or path == Path(__file__) or path.suffix in (".png", ".jpg"):
            continue
        assert path.stat().st_size <= 1 << 20, f"{name} is over 1 MiB"
        assert not hosts.search(path.read_text(encoding="utf-8")), f"{name} names a package registry"


def test_the_modules_of_the_tests_have_names_of_their_own() -> None:
    """Pytest imports them by their bare names: a second one is an error, and only where both are collected."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted({name for name in names if names.count(name) > 1}) == []
