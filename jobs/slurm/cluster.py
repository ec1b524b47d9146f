"""Cluster files: what a site has and wants, typed; a wrong key is one line with the nearest right one."""

from __future__ import annotations

import dataclasses
import re
import shlex
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import msgspec
from msgspec import Meta

from jobs.slurm.render import SLURM
from shards.errors import BadInput, nearest

SECRET = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$", re.IGNORECASE)
"""Names of variables that hold secrets: they stay in the submitter's shell, which sbatch hands on to the job."""

Positive = Annotated[int, Meta(ge=1)]
Count = Annotated[int, Meta(ge=0)]


@dataclass(frozen=True, kw_only=True)
class Container:
    """What the ranks run in: Pyxis/Enroot (options of srun), or Apptainer (a command before ours)."""

    kind: Literal["pyxis", "apptainer"]
    image: str
    mounts: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    python: str = "python"


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """One cluster. slurm/clusters/example.toml says what each key means."""

    about: str = ""
    launcher: Literal["slurm", "local"] = "slurm"
    device: Literal["cuda", "cpu"] = "cuda"
    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    gpus_per_node: Count = 8
    cpus_per_node: Count = 0
    tasks_per_node: Count = 0
    memory_gb: Annotated[float, Meta(ge=0)] = 0
    time: str = "04:00:00"
    signal_lead: Positive = 120
    shared: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    options: dict[str, str] = field(default_factory=dict)
    srun: tuple[str, ...] = ()
    python: str = ""
    scratch: str = ""
    container: Container | None = None


def folders() -> list[Path]:
    """Return where cluster files are looked for: ./clusters first, then the program's own."""
    return [Path("clusters"), SLURM / "clusters"]


def cluster_names() -> list[str]:
    """Return the names of all clusters that can be found."""
    return sorted({path.stem for folder in folders() for path in folder.glob("*.toml")})


def find_cluster(name: str) -> tuple[Cluster, str]:
    """Return the cluster of a file, or of a name in ./clusters or among the program's own; and its short name.

    Raises:
        BadInput: no such file (those that there are are named), an unknown key, a bad value, or a secret in it.
    """
    given = Path(name)
    if given.suffix == ".toml" or "/" in name:
        return read_cluster(given), given.stem
    for folder in folders():
        if (folder / f"{name}.toml").exists():
            return read_cluster(folder / f"{name}.toml"), name
    known = cluster_names()
    there = f"there are {', '.join(known)}; your own: a .toml file, or ./clusters/{name}.toml"
    raise BadInput(f"no cluster {name!r}", "--cluster", f"{nearest(name, known)} {there}".strip())


def read_cluster(path: Path) -> Cluster:
    """Read one cluster file; raises BadInput."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        fix = f"there are {', '.join(cluster_names())}, or give a .toml file"
        raise BadInput(f"the cluster file cannot be read: {error}", path, fix) from error
    except tomllib.TOMLDecodeError as error:
        raise BadInput(f"the cluster file is not TOML: {error}", path, "mend the line it names") from error
    _check_keys(values, Cluster, "", path)
    if isinstance(values.get("container"), dict):
        _check_keys(values["container"], Container, "container.", path)
    cluster = _convert(values, path)
    for key, value in cluster.environment.items():
        if SECRET.search(key) or re.search(r"://[^/@]*:[^/@]*@", value):
            raise BadInput(
                f"environment.{key} is a secret", path, "take it out: what your shell exports reaches the job"
            )
    return cluster


def _check_keys(values: dict[str, Any], kind: type, prefix: str, path: Path) -> None:
    known = [leaf.name for leaf in dataclasses.fields(kind)]
    for key in values:
        if key not in known:
            fix = nearest(key, known) or f"known keys: {', '.join(known)}"
            raise BadInput(f"unknown key {prefix}{key}", path, fix)


def _convert(values: dict[str, Any], path: Path) -> Cluster:
    hints = get_type_hints(Cluster, include_extras=True)
    found = {}
    for key, value in values.items():
        try:
            found[key] = msgspec.convert(value, hints[key])
        except msgspec.ValidationError as error:
            raise BadInput(f"{key} = {value!r} will not do", path, str(error)) from error
    return Cluster(**found)


def site_lines(cluster: Cluster, python_path: str) -> list[str]:
    """Return the shell lines that a job of this cluster begins with."""
    lines = [f"module load {shlex.quote(name)}" for name in cluster.modules] + list(cluster.setup)
    lines += [f"export {name}={shlex.quote(value)}" for name, value in sorted(cluster.environment.items())]
    if python_path:
        lines.append(f"export PYTHONPATH={shlex.quote(python_path)}${{PYTHONPATH:+:$PYTHONPATH}} PYTHONSAFEPATH=1")
    if cluster.scratch:
        lines.append(f'export BLOODCELL_SCRATCH="{cluster.scratch}/bloodcell-$SLURM_JOB_ID"')
    return lines


def srun_options(cluster: Cluster) -> tuple[str, ...]:
    """Return further options of srun: the cluster's own, and those of Pyxis."""
    box = cluster.container
    if box is None or box.kind != "pyxis":
        return cluster.srun
    mounts = (f"--container-mounts={','.join(box.mounts)}",) if box.mounts else ()
    return (*cluster.srun, f"--container-image={box.image}", *mounts, *box.options)


def python(cluster: Cluster, here: str) -> tuple[str, ...]:
    """Return how Python is started on a node: `here` (the submitter's) unless the file or a container says more."""
    box = cluster.container
    if box is None:
        return (cluster.python or here,)
    if box.kind == "pyxis":
        return (box.python,)
    binds = tuple(f"--bind={mount}" for mount in box.mounts)
    gpu = ("--nv",) if cluster.device == "cuda" else ()
    return ("apptainer", "exec", *gpu, *binds, *box.options, box.image, box.python)


def minutes(text: str, where: object) -> int:
    """Return a time limit as Slurm writes it (M, M:S, H:M:S, D-H, D-H:M, D-H:M:S) in whole minutes, at least 1.

    Raises:
        BadInput: it is no time.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text.strip())
    if not match:
        raise BadInput(f"{text!r} is no time limit", where, "write minutes, H:M:S, or D-H:M:S")
    days, *parts = match.groups()
    numbers = [int(part) for part in parts if part is not None]
    if days is not None or len(numbers) == 3:
        hours, least, seconds = (*numbers, 0, 0)[:3]
    else:
        hours, least, seconds = 0, numbers[0], (*numbers, 0)[1]
    total = int(days or 0) * 86_400 + hours * 3600 + least * 60 + seconds
    if total < 1:
        raise BadInput("a time limit of nothing", where, "write minutes, H:M:S, or D-H:M:S")
    return max(1, total // 60)
