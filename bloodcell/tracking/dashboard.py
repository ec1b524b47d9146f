"""The saved W&B workspace of a project, made from panels.SECTIONS with W&B's own library."""

from __future__ import annotations

import importlib.util
import os
import re
from typing import Any

from bloodcell.tracking.names import STEP
from bloodcell.tracking.panels import SECTIONS, Panel
from bloodcell.tracking.view import one_line
from bloodcell.tracking.wandb_results import within
from bloodcell.tracking.wandb_view import KEY_FIX, client, is_refusal
from shards.errors import BadInput, EnvironmentFault


def check_library() -> None:
    """Raise BadInput if W&B's library of workspaces is not installed."""
    if importlib.util.find_spec("wandb_workspaces") is None:
        raise BadInput("wandb-workspaces is not installed", "dashboard", "pip install 'bloodcell[dashboard]'")


def save_dashboard(project: str, entity: str | None, name: str, patience: float) -> tuple[str, bool]:
    """Save the workspace of a project; one of the same name is replaced.

    Args:
        project: the W&B project.
        entity: the user or team; None for the default one of the key.
        name: of the workspace.
        patience: seconds that the server has.

    Returns:
        Its page, and whether it is new.

    Raises:
        BadInput: the library is missing, there is no such project, or the server refuses the key.
        EnvironmentFault: the server does not answer.
    """
    check_library()
    os.environ["WANDB_SILENT"] = "true"
    wandb = client()
    found: list[tuple[str, bool]] = []
    try:
        within(patience, lambda: found.append(_save(wandb, project, entity, name)))
    except BadInput:
        raise
    except Exception as error:  # the client fails in many ways
        if is_refusal(wandb, error):
            raise BadInput("the W&B server refuses the API key", "WANDB_API_KEY", KEY_FIX) from None
        what = f"W&B did not save the workspace: {one_line(error)}"
        raise EnvironmentFault(what, project, "check the network and WANDB_BASE_URL, then start again") from None
    return found[0]


def _save(wandb: Any, project: str, entity: str | None, name: str) -> tuple[str, bool]:
    import wandb_workspaces.workspaces as ws

    owner = entity or wandb.Api().default_entity
    known = re.sub(r"[^a-z0-9]", "", name.lower()) or "bloodcell"  # the name inside W&B, the same at every call
    sections = [
        ws.Section(name=section.question, panels=[_panel(one) for one in section.panels], is_open=True)
        for section in SECTIONS
    ]
    try:
        workspace = ws.Workspace.from_url(f"https://wandb.ai/{owner}/{project}?nw={known}")
        new = False
    except ValueError as error:
        if str(error).startswith("Project"):
            fix = "track a run into it first, or name another one with --project and --entity"
            raise BadInput("no such W&B project, or none that this key may see", f"{owner}/{project}", fix) from None
        if not str(error).startswith("Workspace"):
            raise
        workspace, new = ws.Workspace(entity=owner, project=project), True
        workspace._internal_name = f"nw-{known}-v"
    workspace.name, workspace.sections = name, sections
    workspace.settings.x_axis = STEP
    workspace.save()
    return str(workspace.url), new


def _panel(panel: Panel) -> Any:
    import wandb_workspaces.reports.v2 as wr

    names = list(panel.metrics)
    if panel.kind == "bars":
        return wr.BarPlot(title=panel.title, metrics=names)
    if panel.kind == "media":
        return wr.MediaBrowser(title=panel.title, media_keys=names)
    if panel.kind == "differences":
        return wr.RunComparer(diff_only="split")
    return wr.LinePlot(title=panel.title, x=STEP, y=names, log_y=panel.log or None)
