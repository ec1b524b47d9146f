"""One description of a job: both renderings ask Slurm for the same; cluster files; what is decided when a job ends."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from jobs.slurm.after import decide
from jobs.slurm.cluster import Cluster, Container, find_cluster, minutes, python, read_cluster, site_lines, srun_options
from jobs.slurm.control import tasks, without_job
from jobs.slurm.description import JobDescription
from jobs.slurm.render import ONE_TASK, SLURM, sbatch_script
from jobs.slurm.send import submitit_text
from shards.errors import BadInput

JOB = JobDescription(
    name="bloodcell-run",
    nodes=2,
    tasks_per_node=4,
    gpus_per_node=4,
    cpus_per_task=12,
    minutes=90,
    memory_gb=100,
    partition="gpu",
    account="haematology",
    qos="normal",
    constraint="a100",
    signal_lead=180,
    dependency="afterok:7",
    options=(("reservation", "course"),),
    site=("module load cuda",),
    srun=("--cpu-bind=cores",),
    program=("python", "-m", "jobs.cli"),
)
WORDS = [("--run", "/shared/run")]


def asked(script: str) -> dict[str, str]:
    """Return what the #SBATCH lines ask for."""
    lines = re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", script, re.MULTILINE)
    return {name: " ".join(shlex.split(value)) for name, value in lines}


def start(script: str) -> set[str]:
    """Return the options of the srun that starts the ranks."""
    line = next(line for line in script.splitlines() if line.startswith("srun ") and "--kill-on-bad-exit" in line)
    line = line.replace('"$SRUN_CPUS_PER_TASK"', "12").replace('"${SRUN[@]}"', " ".join(JOB.srun))
    return {word for word in shlex.split(line.replace("--output ", "--output=")) if word.startswith("--")} - {"--run"}


@pytest.mark.parametrize("array", [0, 3])
def test_both_renderings_ask_for_the_same(array: int) -> None:
    job = JobDescription(**{**{name: getattr(JOB, name) for name in JOB.__dataclass_fields__}, "array": array})
    words = [("--run", f"/shared/run/seed{number}") for number in range(array)] or WORDS
    ours, theirs = (
        sbatch_script(job, words, Path("/shared/run/slurm")),
        submitit_text(job, words, Path("/shared/run/slurm")),
    )
    assert asked(ours) == asked(theirs)
    assert start(ours) == start(theirs)
    for script in (ours, theirs):
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_what_slurm_is_asked_for() -> None:
    script = submitit_text(JOB, WORDS, Path("/shared/run/slurm"))
    assert asked(script) == {
        "account": "haematology",
        "constraint": "a100",
        "cpus-per-task": "12",
        "dependency": "afterok:7",
        "gpus-per-node": "4",
        "job-name": "bloodcell-run",
        "kill-on-invalid-dep": "yes",
        "mem": "102400M",
        "nodes": "2",
        "ntasks-per-node": "4",
        "open-mode": "append",
        "output": "/shared/run/slurm/%j_0_log.out",
        "partition": "gpu",
        "qos": "normal",
        "requeue": "",
        "reservation": "course",
        "signal": "USR2@180",
        "time": "90",
    }
    assert start(script) == {
        *("--unbuffered", "--kill-on-bad-exit=1", "--cpus-per-task=12", "--cpu-bind=cores"),
        "--output=/shared/run/slurm/%j_%t_log.out",
    }
    assert "export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}" in script
    assert "BLOODCELL_SIGNAL_LEAD=180" in script
    assert "set -- --run /shared/run" in script, "the path of the run, and nothing else"


@pytest.mark.parametrize("name", ["train", "torchrun", "array"])
def test_the_plain_scripts_ask_for_what_they_rely_on(name: str) -> None:
    script = (SLURM / f"{name}.sbatch").read_text()
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    found = asked(script)
    assert (found["requeue"], found["open-mode"]) == ("", "append")
    lead = found["signal"].removeprefix("USR2@")
    assert f"BLOODCELL_SIGNAL_LEAD={lead}" in script
    assert "--kill-on-bad-exit=1" in script
    assert "SRUN_CPUS_PER_TASK" in script


def test_an_outer_job_is_not_inherited() -> None:
    outer = {"SLURM_NTASKS": "8", "SBATCH_PARTITION": "x", "PMI_RANK": "1", "RANK": "0", "LOCAL_RANK": "0"}
    kept = {"SLURM_CONF": "/etc/slurm.conf", "PATH": "/bin", "WANDB_API_KEY": "k"}
    assert without_job({**outer, **kept}) == kept


@pytest.mark.parametrize(
    ("code", "again"), [(0, False), (1, False), (2, False), (70, False), (85, True), (3, True), (137, True)]
)
def test_which_codes_are_queued_again(code: int, again: bool) -> None:
    assert decide(code, 10, [], 20).again is again
    assert decide(code, 10, [], 20, told=False).again is (again or code == 1), "a library ended it"


def test_the_queue_is_not_flooded() -> None:
    saved = [{"code": 85, "step": step, "again": True} for step in range(20)]
    assert not decide(85, 20, saved, 20).again
    failed = [{"code": 3, "step": 7, "again": True}] * 2
    assert not decide(3, 7, failed, 20).again, "three starts without a step"
    assert decide(3, 8, failed, 20).again
    assert decide(85, 7, failed, 20).again, "a signal is no failure"


def test_cluster_files(tmp_path: Path) -> None:
    for path in (SLURM / "clusters").glob("*.toml"):
        assert read_cluster(path).about
    with pytest.raises(BadInput, match=r"no cluster 'dve' .*'dev'.*dev, example, local"):
        find_cluster("dve")
    file = tmp_path / "mine.toml"
    file.write_text("partitoin = 'gpu'")
    with pytest.raises(BadInput, match=r"unknown key partitoin \(.*mine.toml\): did you mean 'partition'\?"):
        find_cluster(str(file))
    file.write_text("gpus_per_node = 'four'")
    with pytest.raises(BadInput, match="gpus_per_node = 'four' will not do"):
        find_cluster(str(file))


@pytest.mark.parametrize("line", ['WANDB_API_KEY = "x"', 'HTTPS_PROXY = "http://me:word@proxy:1"', 'HF_TOKEN = "x"'])
def test_secrets_are_refused_in_cluster_files(line: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(f"[environment]\n{line}\n")
    with pytest.raises(BadInput, match="is a secret") as caught:
        read_cluster(file)
    assert "word" not in str(caught.value)


def test_what_a_site_needs() -> None:
    cluster = Cluster(modules=("cuda/13",), setup=("umask 027",), environment={"NCCL_SOCKET_IFNAME": "ib0"})
    lines = site_lines(cluster, "/shared/code")
    assert lines[:3] == ["module load cuda/13", "umask 027", "export NCCL_SOCKET_IFNAME=ib0"]
    assert lines[3].startswith("export PYTHONPATH=/shared/code${PYTHONPATH")
    assert python(cluster, "/env/python") == ("/env/python",)
    box = Container(kind="apptainer", image="i.sif", mounts=("/data:/data",))
    assert python(Cluster(container=box), "") == ("apptainer", "exec", "--nv", "--bind=/data:/data", "i.sif", "python")
    box = Container(kind="pyxis", image="r#i", mounts=("/data:/data",))
    assert srun_options(Cluster(container=box)) == ("--container-image=r#i", "--container-mounts=/data:/data")


@pytest.mark.parametrize("kind", ["apptainer", "pyxis"])
def test_both_renderings_run_in_the_container(kind: str) -> None:
    cluster = Cluster(container=Container(kind=kind, image="i.sif", mounts=("/data:/data",)))  # type: ignore[arg-type]
    program, boxed = (*python(cluster, "/env/python"), "-m", "jobs.cli"), kind == "pyxis"
    job = JobDescription(name="run", gpus_per_node=1, program=program, srun=srun_options(cluster), boxed=boxed)
    ours, theirs = (render(job, WORDS, Path("/shared/run/slurm")) for render in (sbatch_script, submitit_text))
    for script in (ours, theirs):
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
        assert f"BLOODCELL=({shlex.join(program)})" in script
        assert f"HERE=({ONE_TASK if boxed else ''})" in script
        assert '"${HERE[@]}" "${BLOODCELL[@]}" requeue --after' in script
        assert "scontrol requeue" in script, "outside of the container, where Slurm's commands are"
    line = next(line for line in theirs.splitlines() if "submitit.core._submit" in line)
    if boxed:
        assert "SRUN=(--container-image=i.sif --container-mounts=/data:/data)" in ours
        assert "--container-image=i.sif --container-mounts=/data:/data python -u -m submitit" in line.replace("'", "")
    else:
        assert "apptainer exec --nv --bind=/data:/data i.sif python -u -m submitit.core._submit" in line


@pytest.mark.parametrize(
    ("text", "wanted"), [("90", 90), ("1:30", 1), ("08:00:00", 480), ("1-0", 1440), ("1-2:30", 1590), ("2-0:0:0", 2880)]
)
def test_time_limits(text: str, wanted: int) -> None:
    assert minutes(text, "--time") == wanted


def test_tasks_of_an_array_that_wait_together() -> None:
    assert tasks("3") == [3]
    assert tasks("0-2,5%4") == [0, 1, 2, 5]
    assert tasks("") == []


def test_no_time_limit() -> None:
    with pytest.raises(BadInput, match="'soon' is no time limit"):
        minutes("soon", "--time")


def test_only_training_is_given_copies_of_its_shards() -> None:
    texts = {verb: submitit_text(JOB, WORDS, Path("/shared/run/slurm"), verb) for verb in ("train", "evaluate")}
    assert [" stage " in texts["train"], " stage " in texts["evaluate"]] == [True, False]
    assert "BLOODCELL_SCRATCH" not in sbatch_script(JOB, WORDS, Path("/shared/run/slurm"), "evaluate")
