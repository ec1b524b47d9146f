"""Starts the page on this machine and ends it: Gradio told to keep to itself, models opened meanwhile, nothing left."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from bloodcell.app.guard import Guard
from bloodcell.app.limits import Limits
from bloodcell.app.login import Login
from bloodcell.app.uploads import Uploads
from shards.console import say, warn
from shards.errors import BadInput
from shards.examplecells import draw_examples

if TYPE_CHECKING:
    from bloodcell.app.model import Model

QUIET = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "GRADIO_SHARE": "False",
    "GRADIO_RUN_HISTORY": "False",
    "GRADIO_MCP_SERVER": "False",
    "GRADIO_SSR_MODE": "False",
    "GRADIO_ALLOWED_PATHS": "",
}
"""Environment that is read while Gradio is imported."""

GRACE_SECONDS = 2
"""How long open connections of browsers may delay the end."""


@dataclass(frozen=True)
class Options:
    """What the page is made of and where it is seen.

    Attributes:
        runs: one run, or two that are shown side by side.
        host, port: address; port 0 takes any that is free.
        login: who may see it; None is everybody who reaches the address.
        limits: of a request.
        device: where the networks compute.
        keep: share of the validation images that shall not be called uncertain.
    """

    runs: Sequence[Path]
    host: str = "127.0.0.1"
    port: int = 7860
    login: Login | None = None
    limits: Limits = field(default_factory=Limits)
    device: Any = "auto"
    keep: float = 0.95


def serve(options: Options) -> None:
    """Show the page until SIGINT or SIGTERM.

    Raises:
        BadInput: no such run, Gradio is not installed, or the address cannot be used.
    """
    with _listening(options.host, options.port) as listener, _uploads() as uploads, _ended() as end:
        page, models = _prepared(options, uploads)
        import uvicorn

        config = uvicorn.Config(
            Guard(page, uploads, options.login, int(options.limits.total_megabytes * 1e6)),
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
        server = uvicorn.Server(config)
        server.capture_signals = contextlib.nullcontext  # type: ignore[assignment]  # ours end it and go on behind it

        def finish() -> None:
            end.wait()
            server.should_exit = True

        threading.Thread(target=finish, name="end", daemon=True).start()
        for model in models:
            for note in model.classifier.certainty.notes:
                warn(f"{model.name}: {note}")
        port = listener.getsockname()[1]
        shown = f"[{options.host}]" if ":" in options.host else options.host
        say(f"page: http://{shown}:{port}  (Ctrl-C ends it)")
        server.run(sockets=[listener])


def _prepared(options: Options, uploads: Uploads) -> tuple[Any, list[Model]]:
    """Return the ASGI application and the models; Gradio is loaded while the models are opened."""
    os.environ.update(QUIET, GRADIO_TEMP_DIR=str(uploads.folder))
    with ThreadPoolExecutor(1) as pool:
        opened: Future[list[Model]] = pool.submit(_opened, options)
        try:
            import gradio as gr
        except ImportError as error:
            raise BadInput("Gradio is not installed", "bloodcell app", "pip install 'bloodcell[app]'") from error
        from bloodcell.app import page as pages

        models = opened.result()
    from bloodcell.app.answers import answer

    def answerer(names: Sequence[str], paths: Sequence[Path]) -> tuple[str, str]:
        shown = answer(models, names, paths, options.limits)
        return shown.summary, shown.html

    desk = pages.Desk(answerer, uploads, draw_examples(uploads.folder / "examples"))
    made = pages.build(_text(models), desk, options.limits)
    from bloodcell.app.routes import application

    return application(gr, made, pages, uploads), models


def _opened(options: Options) -> list[Model]:
    from bloodcell.app.model import Model

    names = [path.resolve().name for path in options.runs]
    if len(set(names)) < len(names):  # folders of one name: two seeds, say
        names = [f"{path.resolve().parent.name} {path.resolve().name}" for path in options.runs]
    return [Model(path, name, options.device, options.keep) for path, name in zip(options.runs, names, strict=True)]


def _text(models: Sequence[Model]) -> Any:
    from bloodcell.app.page import Text

    names = " and ".join(model.architecture for model in models)
    classes = list(dict.fromkeys(name for model in models for name in model.classifier.classes))
    shown = ", ".join(classes[:20]) + (f" and {len(classes) - 20} more" if len(classes) > 20 else "")
    lead = f"Drop pictures of single cells. Each is called one of {len(classes)} classes: {shown}."
    return Text(f"Blood cells, read by {names}", lead, [(model.name, model.card) for model in models])


@contextlib.contextmanager
def _uploads() -> Iterator[Uploads]:
    uploads = Uploads()
    try:
        yield uploads
    finally:
        uploads.close()


@contextlib.contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    """Take the address, before anything is loaded for it."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except (OSError, OverflowError) as error:
        said = getattr(error, "strerror", None) or str(error)
        raise BadInput(f"the address cannot be used: {said}", f"{host}:{port}", "choose another --port") from error
    with listener:
        yield listener


@contextlib.contextmanager
def _ended() -> Iterator[threading.Event]:
    """Yield what is set by SIGINT or SIGTERM; before the page is up they end the program as ever."""
    end = threading.Event()

    def note(_: int, __: FrameType | None) -> None:
        end.set()

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield end
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
