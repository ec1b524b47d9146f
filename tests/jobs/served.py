"""A page that is up, for tests: how it is asked and what it says."""

from __future__ import annotations

import base64
import contextlib
import csv
import io
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

LOGIN = ("mira", "canary-4711")
START_SECONDS = 200.0


@dataclass
class Server:
    """A page that is up."""

    url: str
    process: subprocess.Popen[bytes]
    folder: Path
    log: Path

    def files(self) -> list[Path]:
        """Return what lies in its temporary folder, its own examples apart."""
        return [path for path in self.folder.rglob("*") if path.is_file() and path.parent.name != "examples"]


@contextlib.contextmanager
def client(server: Server) -> Iterator[Any]:
    """Yield Gradio's own client."""
    from gradio_client import Client

    token = base64.b64encode(":".join(LOGIN).encode()).decode()
    made = Client(server.url, headers={"Authorization": f"Basic {token}"}, verbose=False, download_files=False)
    try:
        yield made
    finally:
        made.close()


def tables(html: str) -> dict[str, list[dict[str, str]]]:
    """Return the rows of the CSV files that the page offers, by their names."""
    found = re.findall(r'download="([^"]+)" href="data:text/csv;charset=utf-8;base64,([^"]+)"', html)
    return {name: list(csv.DictReader(io.StringIO(base64.b64decode(data).decode()))) for name, data in found}


def ask(made: Any, paths: Sequence[Path]) -> tuple[str, dict[str, list[dict[str, str]]]]:
    """Return what the page says about some files, and its tables."""
    from gradio_client import handle_file

    status, html, _ = made.predict([handle_file(str(path)) for path in paths], api_name="/classify")
    return status, tables(html)


@dataclass
class Visit:
    """A page in the browser, what it asked for, and what it complained of."""

    page: Any
    asked: list[str]
    said: list[str]

    def answered(self, text: str) -> str:
        """Wait until the status holds a text; return the status."""
        self.page.wait_for_function("text => document.querySelector('#status').innerText.includes(text)", arg=text)
        return str(self.page.inner_text("#status"))

    def fits(self) -> bool:
        """Whether nothing is wider than the window."""
        return bool(self.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"))


@contextlib.contextmanager
def visit(chromium: Any, server: Server, width: int) -> Iterator[Visit]:
    """Yield the page in a window; at the end everything was asked of its own host."""
    user, password = LOGIN
    context = chromium.new_context(
        viewport={"width": width, "height": 800}, http_credentials={"username": user, "password": password}
    )
    page, asked, said = context.new_page(), [], []
    page.set_default_timeout(60_000)
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(server.url)
    page.wait_for_selector("#images input[type=file]", state="attached")
    page.wait_for_selector("#status[aria-live=polite]", state="attached")
    yield Visit(page, asked, said)
    own = urlsplit(server.url).netloc
    assert [url for url in asked if not url.startswith(("data:", "blob:")) and urlsplit(url).netloc != own] == []
    assert not said, said
    context.close()
