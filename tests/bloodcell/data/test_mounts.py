"""Which file system a set lies on is read from the kernel's own table of mounts."""

from __future__ import annotations

from pathlib import Path

import pytest

from bloodcell.data.mounts import file_system, network_file_system

TABLE = """\
22 1 0:20 / / rw,relatime shared:1 - ext4 /dev/vda rw
23 22 0:21 / /proc rw - proc proc rw
30 22 0:40 / /home rw shared:3 master:2 - nfs4 server:/home rw,vers=4.2
31 30 0:41 / /home/me/scratch rw - xfs /dev/nvme0n1 rw
32 22 0:42 / /lustre\\040two rw - lustre mds@o2ib:/fs rw
33 22 0:43 / /buckets rw - fuse.s3fs s3fs rw
34 22 0:44 / /usb rw - fuseblk /dev/sdb1 rw
35 22 0:45 / /twice rw - tmpfs tmpfs rw
36 35 0:46 / /twice rw - beegfs beegfs rw
torn line
37 22 0:47
"""


@pytest.mark.parametrize(
    ("folder", "kind", "network"),
    [
        ("/data/set", "ext4", False),
        ("/home/me/set", "nfs4", True),
        ("/homely", "ext4", False),
        ("/home/me/scratch/set", "xfs", False),
        ("/lustre two/set", "lustre", True),
        ("/buckets/set", "fuse.s3fs", True),
        ("/usb/set", "fuseblk", False),
        ("/twice/set", "beegfs", True),
    ],
)
def test_the_innermost_and_last_mount_counts(tmp_path: Path, folder: str, kind: str, network: bool) -> None:
    table = tmp_path / "mountinfo"
    table.write_text(TABLE, encoding="utf-8")
    assert file_system(Path(folder), table) == kind
    assert network_file_system(Path(folder), table) == (kind if network else None)


def test_without_a_table_nothing_is_known(tmp_path: Path) -> None:
    assert file_system(tmp_path, tmp_path / "none") is None
    assert network_file_system(tmp_path, tmp_path / "none") is None
