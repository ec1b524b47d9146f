"""`bloodcell dashboard`: a saved W&B workspace that shows the runs of a project as docs/watching.md reads them."""

from __future__ import annotations

import argparse
from typing import Any

EPILOG = """\
Saves a workspace of three sections: is it learning, is it fast, is it right. Every metric of a bloodcell run has its
panel, over optimizer steps; docs/watching.md says what is normal in each and what to do where it is not. The same
call again replaces the workspace of that name and leaves all others alone.

Reads the key from where the client does: WANDB_API_KEY, or `wandb login`. Needs `pip install 'bloodcell[dashboard]'`.

--json: {project, entity, name, url, new, sections: [{question, panels: [{title, kind, metrics, normal, act}]}]};
url is null with --dry-run"""


def add_arguments(verb: str, parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of dashboard."""
    parser.add_argument("--project", default="bloodcell", help="W&B project (bloodcell)")
    parser.add_argument("--entity", help="W&B user or team (that of the key)")
    parser.add_argument("--name", default="bloodcell", help="of the workspace (bloodcell)")
    parser.add_argument("--dry-run", action="store_true", help="print the panels; asks no server and needs no key")
    parser.add_argument("--patience", type=float, default=60.0, help="seconds for the server to answer (60)")
    parser.epilog = EPILOG


def run(verb: str, parsed: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """Save the workspace; return what it holds and the lines for people."""
    from dataclasses import asdict

    from bloodcell.tracking.panels import SECTIONS

    lines = []
    for section in SECTIONS:
        lines.append(section.question)
        lines += [f"  {one.title}: {', '.join(one.metrics) or 'config'}" for one in section.panels]
    value: dict[str, Any] = {
        "project": parsed.project,
        "entity": parsed.entity,
        "name": parsed.name,
        "url": None,
        "new": False,
        "sections": [asdict(section) for section in SECTIONS],
    }
    if parsed.dry_run:
        return value, lines
    from bloodcell.tracking.dashboard import check_library, save_dashboard
    from bloodcell.tracking.wandb_view import check_wandb

    check_library()
    check_wandb("online")
    value["url"], value["new"] = save_dashboard(parsed.project, parsed.entity, parsed.name, parsed.patience)
    return value, [f"{'saved' if value['new'] else 'replaced'}: {value['url']}"]
