"""Who may see the page: names and passwords from a file or the environment, asked for by the browser (HTTP Basic)."""

from __future__ import annotations

import base64
import binascii
import hmac
import os
from collections.abc import Mapping
from pathlib import Path

from shards.errors import BadInput

VARIABLE = "BLOODCELL_APP_LOGIN"
"""Holds user:password."""


class Login:
    """Checks the Authorization header of a request.

    Args:
        known: user -> password.
    """

    def __init__(self, known: Mapping[str, str]) -> None:
        self._known = [f"{user}:{password}".encode() for user, password in known.items()]

    def admits(self, header: str) -> bool:
        """Whether the header names a user with the right password; takes as long for a wrong one."""
        kind, _, value = header.partition(" ")
        try:
            given = base64.b64decode(value, validate=True) if kind.lower() == "basic" else b""
        except (binascii.Error, ValueError):
            given = b""
        return sum(hmac.compare_digest(given, one) for one in self._known) > 0


def find_login(file: Path | None) -> Login | None:
    """Return who may see the page: the lines user:password of a file, else of the environment; None is everybody.

    Raises:
        BadInput: the file cannot be read or is open to others, or a line is no user:password. No message quotes it.
    """
    if file is None:
        told = os.environ.pop(VARIABLE, "")  # no process that this one starts shall inherit it
        return Login(_parsed(told, VARIABLE)) if told else None
    try:
        if file.stat().st_mode & 0o077:
            raise BadInput("others may read the passwords", file, f"chmod 600 {file}")
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput("the passwords cannot be read", file, "give a text file with lines user:password") from error
    return Login(_parsed(text, file))


def _parsed(text: str, where: object) -> dict[str, str]:
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    pairs = [line.partition(":")[::2] for line in lines]
    if not pairs or not all(user and password for user, password in pairs):
        raise BadInput("a line is not user:password", where, "give both, with a colon between them")
    return dict(pairs)
