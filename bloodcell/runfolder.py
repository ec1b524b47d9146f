"""The run folder: where it is, whose it is, in what state it is; and how a run is taken up again."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

from bloodcell.config import FUSABLE, TORCHS_BUCKET, Config, decode, difference, identity
from shards.atomic import disk_errors, write_json
from shards.errors import BadInput
from shards.parallel import available_cores

PACKAGES = (
    "torch",
    "torchvision",
    "nvidia-dali-cuda130",
    "deepspeed",
    "timm",
    "numpy",
    "wandb",
    "webdataset",
    "bloodcell",
)


TICK_SECONDS = 5.0
"""status.json is written at most this often while a run trains."""


STOP_FILE = "stop"
"""In the run folder: whoever writes it stops the run after a validation; the same command goes on once it is gone."""


class RunFolder:
    """One run on disk.

    Args:
        path: the folder, which need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def exists(self) -> bool:
        """Whether a run was started here."""
        return (self.path / "config.json").exists()

    def stored(self) -> dict[str, Any]:
        """Return config.json: {"config", "recipe", "fingerprint", "classes", "model", ...}; raises BadInput."""
        path = self.path / "config.json"
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
            return dict(value)
        except FileNotFoundError:
            raise BadInput("no run here (no config.json)", self.path, "give the folder of a run") from None
        except (OSError, ValueError, TypeError) as error:
            raise BadInput(
                f"the run's config cannot be read: {error}", path, "restore it or start a new run"
            ) from error

    def config(self) -> Config:
        """Return the stored config."""
        stored = self.stored()["config"]
        # What there was before there was a choice.
        stored["data"] = {"backend": "dali", **stored.get("data", {})}
        stored["engine"] = {"bucket_mb": TORCHS_BUCKET, **stored.get("engine", {})}
        optim, gpu = stored.get("optim", {}), stored["engine"].get("device") == "cuda"
        fused = gpu and optim.get("name", "adamw") in FUSABLE
        stored["optim"] = {"fused": "on" if fused else "off", **optim}
        return decode(stored, self.path / "config.json")

    def create(self, content: dict[str, Any]) -> None:
        """Make the folder and write config.json; raises EnvironmentFault or BadInput where that is impossible."""
        try:
            with disk_errors(self.path):
                self.path.mkdir(parents=True, exist_ok=True)
                (self.path / "checkpoints").mkdir(exist_ok=True)
                write_json(self.path / "config.json", content)
        except (PermissionError, FileExistsError, NotADirectoryError) as error:
            raise BadInput(
                f"the run folder cannot be written: {error.strerror}", self.path, "choose another --run"
            ) from error

    def stop_asked(self, epoch: float) -> bool:
        """Whether RUN/stop asks the run to stop now: it is there, and a number of epochs in it is done."""
        try:
            text = (self.path / STOP_FILE).read_text(encoding="utf-8")
        except FileNotFoundError:
            return False
        return not text.strip().isdecimal() or epoch >= int(text)

    def write(self, name: str, value: Any) -> None:
        """Write a JSON file of the run atomically."""
        write_json(self.path / name, value)

    def read(self, name: str) -> Any:
        """Return a JSON file of the run, or None if there is none."""
        try:
            return json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None


class Status:
    """status.json: what a run is doing, for people, scripts and launchers that hide exit codes.

    Args:
        run: its folder.
        write: whether this rank writes (the first one does).
    """

    def __init__(self, run: RunFolder, write: bool) -> None:
        self.run, self.first, self.writes = run, write, write
        self.values: dict[str, Any] = {}
        self.begin()
        self._begin, self._work = time.time(), time.process_time()

    def begin(self) -> None:
        """Follow what status.json says now; once more when the run is ours, for its last holder wrote until then."""
        self.before: dict[str, Any] = self.run.read("status.json") or {}
        before = self.before
        self.values["attempt"] = int(before.get("attempt", 0)) + 1
        self.spent, self.worked = (float(before.get(name, 0.0)) for name in ("wall_seconds", "cpu_seconds"))

    def tick(self, **values: Any) -> None:
        """Change some values; write the file if the state is another one, or some seconds after it was last written."""
        begins = values.get("state", self.values.get("state")) != self.values.get("state")
        self.values.update(values)
        if begins or time.time() - self.values.get("time", 0) >= TICK_SECONDS:
            self.update()

    def update(self, **values: Any) -> None:
        """Change some values and write the file."""
        self.values.update(values)
        self.values["wall_seconds"] = round(self.spent + time.time() - self._begin, 3)
        self.values["cpu_seconds"] = round(self.worked + time.process_time() - self._work, 3)
        self.values["time"] = round(time.time(), 3)
        if self.writes:
            self.run.write("status.json", self.values)


def default_path(recipe: str, config: Config, fingerprint: str) -> Path:
    """Return runs/<recipe>-<hash of config and set>: the same command finds its run again."""
    return Path("runs") / f"{recipe}-{identity(config, fingerprint)}"


def check_same(stored: Config, wanted: Config, where: Path) -> Config:
    """Return the config to go on with: the stored one with the wanted run-time fields and length.

    Raises:
        BadInput: any other field differs; the message holds the difference.
    """
    changed = difference(stored, wanted)
    longer = changed.pop("train.epochs", None)
    if longer is not None and longer[1] < longer[0]:
        changed["train.epochs"] = longer
    if not stored.data.micro_batch:
        changed.pop("data.micro_batch", None)  # submitted: the first start finds it
    changed.pop("data.set", None)  # the set may have moved; its fingerprint is compared instead
    if changed:
        said = "; ".join(f"{key}: {old!r} there, {new!r} here" for key, (old, new) in changed.items())
        raise BadInput(
            f"the run was started with another config ({said})", where, "choose another --run, or drop the flags"
        )
    return wanted


def environment(threads: dict[str, int], launcher: str, device: str, world: int) -> dict[str, Any]:
    """Return what a reader needs to repeat the run: versions, machine, threads. No variables: they can hold secrets."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "versions": versions,
        "host": platform.node(),
        "system": platform.platform(),
        "processor": _processor(),
        "cores": available_cores(),
        "device": device,
        "launcher": launcher,
        "world": world,
        "threads": threads,
        "executable": sys.executable,
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
        return names[0] if names else platform.processor()
    except OSError:
        return platform.processor()
