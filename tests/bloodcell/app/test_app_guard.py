"""What stands before the page: only its own requests pass, of bounded size; files lie apart and go."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bloodcell.app.guard import QUESTION_BYTES, Guard
from bloodcell.app.limits import Limits
from bloodcell.app.login import VARIABLE, Login, find_login
from bloodcell.app.pictures import pictures_of, square
from bloodcell.app.uploads import Uploads
from shards.errors import BadInput

MOST = 5000


@pytest.fixture
def uploads() -> Iterator[Uploads]:
    """A folder of uploads."""
    made = Uploads()
    yield made
    made.close()
    assert not made.folder.exists()


def asked(guard: Guard, method: str, path: str, body: bytes = b"", chunk: int = 1 << 20, **headers: str) -> int:
    """Return the status of a request; the body arrives in chunks."""
    told: list[Any] = []
    parts = [body[at : at + chunk] for at in range(0, len(body), chunk)] or [b""]

    async def receive() -> dict[str, Any]:
        part = parts.pop(0) if parts else b""
        return {"type": "http.request", "body": part, "more_body": bool(parts)}

    async def send(message: Any) -> None:
        told.append(message)

    named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": method, "path": path, "headers": named}
    asyncio.run(guard(scope, receive, send))
    assert any(name == b"content-security-policy" for name, _ in told[0]["headers"])
    return int(told[0]["status"])


def guard(uploads: Uploads, login: Login | None = None) -> Guard:
    """Return a guard before an application that reads everything and says 200."""

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    return Guard(inner, uploads, login, MOST)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 200),
        ("GET", "/assets/index.js", 200),
        ("GET", "/gradio_api/queue/data", 200),
        ("GET", "/gradio_api/file=/etc/passwd", 404),
        ("GET", "/gradio_api/file=http://example.org/", 404),
        ("GET", "/gradio_api/proxy=http://example.org/", 404),
        ("GET", "/assets/../config.json", 404),
        ("GET", "/monitoring", 404),
        ("GET", "/gradio_api/runs", 404),
        ("POST", "/gradio_api/vibe-edit", 404),
        ("POST", "/gradio_api/run/classify", 404),
        ("PUT", "/gradio_api/upload", 404),
    ],
)
def test_only_what_the_page_asks_passes(uploads: Uploads, method: str, path: str, status: int) -> None:
    assert asked(guard(uploads), method, path) == status


def test_only_uploaded_files_can_be_named(uploads: Uploads) -> None:
    file = uploads.new() / "cell.png"
    file.write_bytes(b"x")

    def named(path: Any) -> int:
        body = json.dumps({"data": [[{"path": path, "meta": {"_type": "gradio.FileData"}}]], "fn_index": 0}).encode()
        return asked(guard(uploads), "POST", "/gradio_api/queue/join", body, 7)

    assert named(str(file)) == 200
    link = file.with_name("link.png")
    link.symlink_to("/etc/passwd")
    for path in ("/etc/passwd", "http://example.org/cell.png", f"{file.parent}/../../x", str(link), None, "\0"):
        assert named(path) == 403, path
    assert asked(guard(uploads), "POST", "/gradio_api/queue/join", b"[" * 100_000) == 403


def test_bodies_are_bounded_also_those_that_do_not_say_so(uploads: Uploads) -> None:
    one = guard(uploads)
    assert asked(one, "POST", "/gradio_api/upload", b"x" * MOST, 999) == 200
    assert asked(one, "POST", "/gradio_api/upload", b"x" * (MOST + 1), 999) == 413
    assert asked(one, "POST", "/gradio_api/upload", content_length=str(MOST + 1)) == 413
    assert asked(one, "POST", "/gradio_api/upload", content_length="no number") == 413
    assert asked(one, "POST", "/gradio_api/queue/join", b" " * (QUESTION_BYTES + 1)) == 413


def test_the_page_of_another_site_may_not_ask(uploads: Uploads) -> None:
    one = guard(uploads)
    assert asked(one, "POST", "/gradio_api/upload", host="cells:1", origin="http://cells:1") == 200
    assert asked(one, "POST", "/gradio_api/upload", host="cells:1", origin="http://elsewhere") == 403
    assert asked(one, "POST", "/gradio_api/upload", host="cells:1", origin="null") == 403


def test_a_password_is_asked_for_and_never_shown(
    uploads: Uploads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "login"
    file.write_text("# who may see it\nmira:a secret: with colon\njo:other\n")
    file.chmod(0o600)
    one = guard(uploads, find_login(file))

    def entered(text: str) -> int:
        return asked(one, "GET", "/", authorization="Basic " + base64.b64encode(text.encode()).decode())

    assert entered("mira:a secret: with colon") == entered("jo:other") == 200
    for wrong in ("mira:other", "jo:", "", ":", "mira", "jo:other\n"):
        assert entered(wrong) == 401, wrong
    assert asked(one, "GET", "/") == asked(one, "GET", "/", authorization="Basic ?") == 401
    assert asked(one, "POST", "/gradio_api/upload") == 401
    file.chmod(0o644)
    with pytest.raises(BadInput, match="others may read"):
        find_login(file)
    monkeypatch.setenv(VARIABLE, "canary-no-colon")
    with pytest.raises(BadInput) as said:
        find_login(None)
    assert "canary" not in str(said.value)
    assert find_login(None) is None  # it was taken out of the environment


def test_uploads_lie_apart_and_go(uploads: Uploads) -> None:
    first, second = (uploads.new() / "deep" / "cell.png" for _ in range(2))
    for path in (first, second):
        path.parent.mkdir()
        path.write_bytes(b"the same")
    uploads.remove(first)
    assert second.exists()
    assert uploads.holds(str(second))
    assert not uploads.holds(str(uploads.folder))
    assert [path.name for path in uploads.folder.iterdir()] == [second.parents[1].name]
    uploads.forget(3600)
    assert second.exists()
    time.sleep(0.02)
    uploads.forget(0.01)
    assert not list(uploads.folder.iterdir())


def png(width: int, height: int) -> bytes:
    """Return a PNG that announces so many black pixels and holds them, small as they compress."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4) + name + data + zlib.crc32(name + data).to_bytes(4)

    header = width.to_bytes(4) + height.to_bytes(4) + bytes([1, 0, 0, 0, 0])
    rows = zlib.compress(bytes(height * (1 + (width + 7) // 8)), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_limits_are_kept_and_said(tmp_path: Path) -> None:
    cell = io.BytesIO()
    Image.fromarray(np.full((20, 30, 3), 200, np.uint8)).save(cell, "PNG")
    files = {
        "good.png": cell.getvalue(),
        "bomb.png": png(20_000, 20_000),
        "large.png": png(40, 30),
        "heavy.jpg": bytes(3000),
        "text.jpg": b"no image",
        "empty.png": b"",
        "last.png": cell.getvalue(),
        "beyond.png": cell.getvalue(),
    }
    paths = []
    for name, data in files.items():
        paths.append(tmp_path / name)
        paths[-1].write_bytes(data)
    limits = Limits(images=7, megabytes=0.5, megapixels=0.001)
    found = dict(zip(files, pictures_of(paths, limits), strict=True))
    heavy = pictures_of([tmp_path / "heavy.jpg"], Limits(megabytes=0.002))[0]
    assert found["good.png"].rgb is not None
    assert found["last.png"].rgb is not None
    assert found["bomb.png"].reason == "too large: more than 0.001 million pixels"
    assert "too large" in found["large.png"].reason
    assert "too large: 0.0 MB" in heavy.reason
    assert found["text.jpg"].reason.startswith("not an image")
    assert found["empty.png"].reason.startswith("empty")
    assert "more than 7 images" in found["beyond.png"].reason
    many = pictures_of([tmp_path / "good.png"] * 10, Limits(megapixels=0.0006))
    assert [picture.rgb is not None for picture in many] == [True] * 8 + [False] * 2
    with pytest.raises(BadInput, match="will not do"):
        Limits(megapixels=0)


def test_the_shown_square_is_the_middle() -> None:
    wide = np.zeros((40, 100, 3), np.uint8)
    wide[:, 30:70] = 255
    assert square(wide).shape == (40, 40, 3)
    assert square(wide).min() == 255
    assert square(np.zeros((900, 700, 3), np.uint8)).shape == (320, 320, 3)
