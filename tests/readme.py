"""The commands that the documents tell people to type, found in their text."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from jobs.cli import VERBS

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "slurm/README.md",
    *sorted(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md")),
]
COMMANDS = ("bloodcell", "torchrun", "make", "pip", "sbatch", "wandb", "slurm/dev-cluster", ".")


def blocks(page: str) -> list[str]:
    """Return the commands of the fenced blocks of a page, one for each line and `;`, without what is said behind #."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = []
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        if language not in ("", "sh", "bash"):
            continue
        lines = [re.sub(r"(^|\s{2,})#.*", "", line).strip() for line in block.splitlines()]
        commands = [part.strip() for line in lines for part in line.split(";") if part.strip()]
        found += [one for one in commands if one.split()[0] in COMMANDS]
    return found


def spans(page: str) -> list[str]:
    """Return what stands in backticks in the running text and begins with a verb and at least one word more."""
    text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    found = []
    for span in re.findall(r"`([^`]+)`", text):
        words = span.split()
        bare = len(words) > 1 and words[0] in VERBS and words[0] not in ("report", "status")
        if words and (words[0] == "bloodcell" or bare or "bloodcell" in words[1:]):
            found.append(" ".join(words))
    return found


def of_bloodcell(command: str) -> list[str]:
    """Return the words behind `bloodcell` of a command, whatever starts it; [] if it is another program's."""
    words = [word for word in shlex.split(command.replace("…", "...")) if word != "..."]
    if "bloodcell" in words:
        return words[words.index("bloodcell") + 1 :]
    return words if words and words[0] in VERBS else []
