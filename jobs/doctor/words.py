"""How a process on a node tells what it saw: lines of a log that many write to, and files in the folder they share.

The log comes over the network, so it is heard of nodes whose folder is another one, too. Lines are short, so that those
of several processes do not mix; what else libraries print stands between them.
"""

from __future__ import annotations

import base64
import json
import os
import platform
import re
import sys
import zlib
from typing import Any

MARK = "@doctor"
PIECE = 400
LINE = re.compile(MARK + r" (\w+) (\d+) (\d+)/(\d+) ([A-Za-z0-9+/=]+)\s*$")

Heard = dict[tuple[str, int], dict[str, Any]]


def node_name() -> str:
    """Return what Slurm calls this machine, or what it calls itself."""
    return os.environ.get("SLURMD_NODENAME") or platform.node()


def told(kind: str, who: int, value: dict[str, Any]) -> str:
    """Return `value` as lines: of what kind it is, which process tells it."""
    text = base64.b64encode(zlib.compress(json.dumps(value).encode())).decode()
    pieces = [text[begin : begin + PIECE] for begin in range(0, len(text), PIECE)]
    return "".join(f"{MARK} {kind} {who} {n}/{len(pieces)} {piece}\n" for n, piece in enumerate(pieces, 1))


def speak(kind: str, who: int, value: dict[str, Any]) -> None:
    """Write it to stdout, at once."""
    sys.stdout.write(told(kind, who, value))
    sys.stdout.flush()


def heard(log: str) -> Heard:
    """Return {(kind, who): value} of all that was told whole."""
    pieces: dict[tuple[str, int, int], dict[int, str]] = {}
    for line in log.splitlines():
        if match := LINE.search(line):
            kind, who, number, count, piece = match.groups()
            pieces.setdefault((kind, int(who), int(count)), {})[int(number)] = piece
    found = {}
    for (kind, who, count), parts in pieces.items():
        if len(parts) == count:
            text = "".join(parts[number] for number in sorted(parts))
            found[kind, who] = json.loads(zlib.decompress(base64.b64decode(text)))
    return found


def last_line(log: str, who: int) -> str:
    """Return the last line that is no word of ours of a process (`srun --label` writes its number before each)."""
    own = [line.partition(":")[2].strip() for line in log.splitlines() if re.match(rf"\s*0*{who}: ", line)]
    said = [line for line in own if line and MARK not in line]
    return said[-1][:300] if said else ""
