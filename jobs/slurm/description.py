"""What a job asks Slurm for: one description, and the sbatch options that it means under either rendering."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class JobDescription:
    """One job, or an array of equal ones.

    Attributes:
        name: shown by squeue.
        nodes: machines.
        tasks_per_node: processes on each: one for each GPU.
        gpus_per_node: all of them visible to every process of the node, which takes the one of its local rank.
        cpus_per_task: cores of each process.
        minutes: time limit.
        memory_gb: of each node; 0 is the cluster's default.
        partition, account, qos, constraint: as sbatch takes them; empty is the cluster's default.
        signal_lead: seconds before the time limit at which the ranks are told to save.
        max_requeues: how often the job may queue itself again.
        array: how many equal jobs; 0 is one that is no array.
        parallel: how many of an array may run at once; 0 is all.
        dependency: as sbatch takes it; empty for none.
        options: further sbatch options, name to value.
        site: shell lines before anything is started: modules, environment.
        srun: further options of srun, such as those of a container.
        boxed: whether only srun leads into the container that the program needs (Pyxis).
        program: how the `bloodcell` command is started on a node.
    """

    name: str
    nodes: int = 1
    tasks_per_node: int = 1
    gpus_per_node: int = 0
    cpus_per_task: int = 1
    minutes: int = 240
    memory_gb: float = 0
    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    signal_lead: int = 120
    max_requeues: int = 20
    array: int = 0
    parallel: int = 0
    dependency: str = ""
    options: tuple[tuple[str, str], ...] = ()
    site: tuple[str, ...] = ()
    srun: tuple[str, ...] = ()
    boxed: bool = False
    program: tuple[str, ...] = ("bloodcell",)

    @property
    def world(self) -> int:
        """How many ranks."""
        return self.nodes * self.tasks_per_node


def directives(job: JobDescription) -> dict[str, str]:
    """Return the sbatch options, name to value; an option without a value maps to ''."""
    found = {
        "job-name": job.name,
        "nodes": str(job.nodes),
        "ntasks-per-node": str(job.tasks_per_node),
        "gpus-per-node": str(job.gpus_per_node or ""),
        "cpus-per-task": str(job.cpus_per_task),
        "time": str(job.minutes),
        "mem": f"{round(job.memory_gb * 1024)}M" if job.memory_gb else "",
        "partition": job.partition,
        "account": job.account,
        "qos": job.qos,
        "constraint": job.constraint,
        "signal": f"USR2@{job.signal_lead}",
        "dependency": job.dependency,
        "array": f"0-{job.array - 1}%{min(job.parallel or job.array, job.array)}" if job.array else "",
        **dict(job.options),
    }
    kept = {name: value for name, value in found.items() if value}
    flags = {"requeue": "", "open-mode": "append"}
    return {**kept, **flags, **({"kill-on-invalid-dep": "yes"} if job.dependency else {})}
