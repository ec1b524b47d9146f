"""The folder of uploads: each upload lies apart, and goes when it is answered, when forgotten, and at the end."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tempfile
import threading
import time
from pathlib import Path

FORGOTTEN_SECONDS = 600.0
"""An upload that nobody asked about is removed after this time."""


class Uploads:
    """A private temporary folder with a folder for each upload, whose name cannot be guessed."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="bloodcell-app-")).resolve()
        self._end = threading.Event()
        threading.Thread(target=self._sweep, name="uploads", daemon=True).start()

    def new(self) -> Path:
        """Make the folder of one upload."""
        place = self.folder / secrets.token_hex(16)
        place.mkdir(mode=0o700)
        return place

    def holds(self, path: str) -> bool:
        """Whether a path lies in an upload, links and .. resolved."""
        with contextlib.suppress(OSError, ValueError):
            return self.folder in Path(path).resolve().parents
        return False

    def remove(self, path: Path) -> None:
        """Remove one uploaded file, and its folders when nothing else is in them."""
        with contextlib.suppress(OSError):
            path.unlink()
            for parent in path.parents:
                if parent == self.folder:
                    return
                parent.rmdir()

    def close(self) -> None:
        """Remove everything."""
        self._end.set()
        shutil.rmtree(self.folder, ignore_errors=True)

    def forget(self, seconds: float) -> None:
        """Remove the uploads that are older than this."""
        for place in os.scandir(self.folder):
            with contextlib.suppress(OSError):
                if time.time() - place.stat().st_mtime > seconds:
                    shutil.rmtree(place.path, ignore_errors=True)

    def _sweep(self) -> None:
        while not self._end.wait(FORGOTTEN_SECONDS / 10):
            with contextlib.suppress(OSError):
                self.forget(FORGOTTEN_SECONDS)
