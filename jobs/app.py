"""`bloodcell app`: a run as a web page on this machine; drop images, see classes, certainty and where it looked."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any

from bloodcell.app.limits import Limits
from shards.errors import BadInput

EPILOG = """\
The page takes images or a folder and shows for each image the cell, where the network looked, the probability of every
class (calibrated, as `bloodcell predict` gives it, of the same pixels) and whether to show it to an expert. With two
runs their answers stand side by side. Tables can be kept as CSV. Research use only: not a medical device.

Only this machine sees it unless --host says otherwise (0.0.0.0: everybody who reaches the machine; nothing is
encrypted, so put a proxy with TLS before it). --login FILE, or the variable BLOODCELL_APP_LOGIN, holds user:password;
the browser asks for them. Nothing is fetched from elsewhere or told to anybody. Uploads are deleted once answered.

Ctrl-C ends it. --json: {runs, seconds}"""


def add_arguments(verb: str, parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of app."""
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folder, or two to compare")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (127.0.0.1: this machine only)")
    parser.add_argument("--port", type=int, default=7860, help="port to listen at; 0 is any that is free (7860)")
    parser.add_argument("--login", type=Path, metavar="FILE", help="lines user:password of those who may see the page")
    parser.add_argument("--keep", type=float, default=0.95, help="share of images to decide without a person (0.95)")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="where to compute (auto)")
    helps = {
        "images": "images of one request that are answered",
        "megabytes": "size of one file, 10^6 bytes",
        "total_megabytes": "size of one upload",
        "megapixels": "pixels of one image, 10^6",
        "waiting": "requests that may wait",
    }
    for limit in fields(Limits):
        name, default = limit.name, limit.default
        kind = int if isinstance(default, int) else float
        flag = f"--max-{name.replace('_', '-')}"
        parser.add_argument(flag, type=kind, default=default, help=f"{helps[name]} ({default:g})")
    parser.epilog = EPILOG


def run(verb: str, parsed: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """Show the page until it is ended."""
    import time
    from importlib.util import find_spec

    from bloodcell.app.login import find_login
    from shards.console import warn

    if len(parsed.runs) > 2:
        raise BadInput(f"{len(parsed.runs)} runs", "RUN", "name one, or two to see side by side")
    if len({path.resolve() for path in parsed.runs}) < len(parsed.runs):
        raise BadInput("the same run twice", "RUN", "name two runs to see them side by side")
    login = find_login(parsed.login)
    limits = Limits(**{limit.name: getattr(parsed, f"max_{limit.name}") for limit in fields(Limits)})
    if find_spec("gradio") is None:
        raise BadInput("Gradio is not installed", "bloodcell app", "pip install 'bloodcell[app]'")
    if login is None and parsed.host not in ("127.0.0.1", "::1", "localhost"):
        warn(f"everybody who reaches {parsed.host} can use the page: --login FILE asks for a password")
    from bloodcell.app.serve import Options, serve

    begin = time.monotonic()
    serve(Options(parsed.runs, parsed.host, parsed.port, login, limits, parsed.device, parsed.keep))
    return {"runs": [str(path) for path in parsed.runs], "seconds": round(time.monotonic() - begin, 1)}, ["ended"]
