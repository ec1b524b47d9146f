"""The ways a command can end early: each exception carries one clear line and the exit code of the process."""

from __future__ import annotations


class Stop(Exception):  # noqa: N818 - it names what happens
    """A command ends: what happened, where, and what to do about it.

    Args:
        what: the problem, as a short clause.
        where: the file, key or sample it is about; empty if there is none.
        fix: what the reader can do; empty if nothing is known.
    """

    code = 70

    def __init__(self, what: str, where: object = "", fix: str = "") -> None:
        super().__init__(what, str(where), fix)
        self.what, self.where, self.fix = what, str(where), fix

    def __str__(self) -> str:
        place = f" ({self.where})" if self.where else ""
        return f"{self.what}{place}" + (f": {self.fix}" if self.fix else "")


class CheckFailed(Stop):
    """A check that was asked for found something wrong."""

    code = 1


class BadInput(Stop):
    """The command line, a config, or the data cannot be used as they are."""

    code = 2


class EnvironmentFault(Stop):
    """Disk, network or a peer failed: starting again may help."""

    code = 3


class Unreadable(EnvironmentFault):
    """A sample of a shard set cannot be read: its file system, its shard, or the bytes in it are at fault."""


class Stopped(Stop):
    """A run was asked to stop and has saved: the same command goes on."""

    code = 85


class Preempted(Stopped):
    """A signal asked for it: a launcher that wants its machine back, or a person."""


class Fault(Stop):
    """Something inside went wrong; starting again will not help."""

    code = 70


_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n\r"}


def visible(text: str) -> str:
    """Return the text with control characters written out: a file's name must not steer the reader's terminal."""
    return text.translate(_CONTROLS)


def nearest(name: str, known: list[str]) -> str:
    """Return ' (did you mean X?)' for the known name most like `name`, or an empty string."""
    import difflib

    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else ""
