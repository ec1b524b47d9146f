"""Which file system a folder lies on, and whether that is one of other machines."""

from __future__ import annotations

import re
from pathlib import Path

NETWORK = re.compile(
    r"nfs\d?|lustre|gpfs|beegfs|cifs|smb3?|smbfs|ceph|9p|afs|glusterfs|pvfs2|orangefs|panfs|wekafs|acfs|ocfs2|gfs2"
    r"|fuse|fuse\..+"
)
"""Types of file systems whose files other machines hold; file systems in user space (FUSE) mostly are such."""

TABLE = Path("/proc/self/mountinfo")


def network_file_system(folder: Path, table: Path = TABLE) -> str | None:
    """Return the type of the file system that a folder lies on if it is a network's ("nfs4"), else None.

    Args:
        folder: any path.
        table: the mounts as Linux lists them (proc(5)); where there is no such file, nothing is known: None.
    """
    kind = file_system(folder, table)
    return kind if kind is not None and NETWORK.fullmatch(kind) else None


def file_system(folder: Path, table: Path = TABLE) -> str | None:
    """Return the type of the file system that a folder lies on, None if that cannot be told."""
    try:
        lines = table.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return None
    path, found, longest = folder.resolve(), None, -1
    for line in lines:
        mount, separator, filesystem = line.partition(" - ")
        fields = mount.split(" ")
        if not separator or len(fields) < 5:
            continue
        point = Path(re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), fields[4]))
        if path.is_relative_to(point) and len(point.parts) >= longest:  # of two at one place the later one is seen
            found, longest = filesystem.split(" ")[0], len(point.parts)
    return found
