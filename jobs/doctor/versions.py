"""Python, packages, driver and CUDA: what a node has, whether all have the same, and whether it fits together."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import platform
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from importlib import metadata
from typing import Any

from jobs.doctor.findings import Finding, bad, good, listed, unknown

MODULES = (
    *("torch", "torchvision", "nvidia.dali", "deepspeed", "timm", "safetensors", "webdataset", "wandb", "submitit"),
    *("numpy", "pyarrow", "PIL", "sklearn", "scipy", "msgspec", "rich", "jinja2", "matplotlib", "psutil"),
)
"""What the program imports somewhere."""
SHOWN = ("torch", "nvidia-dali-cuda130", "deepspeed")

Node = dict[str, Any]


def look() -> dict[str, Any]:
    """Return {python, executable, packages: {name: version}, missing: modules, gpus, driver, torch_cuda, ...}."""
    named = [(one.metadata["Name"], one) for one in metadata.distributions()]
    packages = {
        name.lower(): one.version for name, one in named if name
    }  # a folder emptied by a failed install has none
    return {
        "python": platform.python_version(),
        "executable": sys.executable,
        "packages": packages,
        "missing": [name for name in MODULES if not _there(name)],
        **_driver(),
        **_torch(),
        "dali_cuda": next((m[1] for name in packages if (m := re.fullmatch(r"nvidia-dali-cuda(\d+)0", name))), ""),
    }


def _there(module: str) -> bool:
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return False
    return found is not None and found.origin is not None


def _driver() -> dict[str, Any]:
    asked = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        shown = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return {"gpus": [], "driver": ""}
    rows = [[part.strip() for part in line.split(",")] for line in shown.stdout.splitlines() if line.count(",") == 2]
    return {"gpus": [f"{name}, {memory}" for name, memory, _ in rows], "driver": rows[0][2] if rows else ""}


def _torch() -> dict[str, Any]:
    """Return what torch was built for, what it sees, and why it or DALI cannot be loaded."""
    found: dict[str, Any] = {"torch_cuda": "", "visible": 0, "driver_cuda": "", "broken": []}
    for name in ("torch", "nvidia.dali"):
        try:
            importlib.import_module(name)
        except Exception as error:  # whatever a broken installation raises is the finding
            found["broken"].append(f"{name}: {type(error).__name__}: {error}"[:200])
    if torch := sys.modules.get("torch"):
        found["torch_cuda"] = torch.version.cuda or ""
        found["visible"] = torch.cuda.device_count()
        found["driver_cuda"] = _driver_cuda()
    return found


def _driver_cuda() -> str:
    """Return the newest CUDA version that the driver knows (cuDriverGetVersion of the driver API), "" without one."""
    number = ctypes.c_int()
    try:
        failed = ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(number))
    except (OSError, AttributeError):
        return ""
    return "" if failed else f"{number.value // 1000}.{number.value % 1000 // 10}"


def judge_packages(nodes: Sequence[Node]) -> Finding:
    """Compare Python and all packages; what most nodes have is taken for right."""
    name, first = "Python and packages", nodes[0]["versions"]
    problems = []
    for what in ("python", "executable"):
        known = Counter(node["versions"][what] for node in nodes)
        usual = known.most_common(1)[0][0]
        odd = [node for node in nodes if node["versions"][what] != usual]
        problems += [f"{what} is {node['versions'][what]} on {node['node']}, else {usual}" for node in odd]
    for package in sorted({package for node in nodes for package in node["versions"]["packages"]}):
        known = Counter(node["versions"]["packages"].get(package, "") for node in nodes)
        usual = known.most_common(1)[0][0] or max(known)
        for node in nodes:
            here = node["versions"]["packages"].get(package, "")
            if here != usual:
                problems.append(f"{package} {here or 'is missing'} on {node['node']}, else {usual}")
    for node in nodes:
        problems += [f"{module} cannot be found on {node['node']}" for module in node["versions"]["missing"]]
        problems += [f"on {node['node']}, {said}" for said in node["versions"]["broken"]]
    if problems:
        fix = (
            "install the same everywhere: best one environment in a folder that all nodes share (cluster file: python)"
        )
        return bad(name, listed(problems), fix)
    shown = [f"{package} {first['packages'][package]}" for package in SHOWN if package in first["packages"]]
    alike = f", alike on {len(nodes)} nodes" if len(nodes) > 1 else ""
    return good(name, f"Python {first['python']}, {', '.join(shown)}; {len(first['packages'])} packages{alike}")


def judge_driver(nodes: Sequence[Node], device: str) -> Finding:
    """Say where GPUs that are asked for cannot be used."""
    name = "driver and GPUs"
    if device != "cuda":
        return unknown(name, "training on the CPU is asked for")
    problems = []
    for node in nodes:
        seen, where = node["versions"], node["node"]
        if not seen["driver"]:
            problems.append(f"{where} has no NVIDIA driver that answers")
        elif not seen["visible"]:
            problems.append(f"torch sees none of the {len(seen['gpus'])} GPUs of {where}")
    if len(drivers := {node["versions"]["driver"] for node in nodes}) > 1:
        problems.append(f"drivers differ: {', '.join(sorted(filter(None, drivers)))}")
    if problems:
        fix = "ask for GPUs (gpus_per_node), see `nvidia-smi` there; without GPUs: device = 'cpu'"
        return bad(name, listed(problems), fix)
    first = nodes[0]["versions"]
    return good(name, f"driver {first['driver']}, {len(first['gpus'])} x {(first['gpus'] or ['none'])[0]} on each node")


def judge_cuda(nodes: Sequence[Node], device: str) -> Finding:
    """Compare what torch and DALI were built for, and what the driver knows."""
    problems = []
    for node in nodes:
        seen, where = node["versions"], node["node"]
        torch, dali, driver = (seen[part].partition(".")[0] for part in ("torch_cuda", "dali_cuda", "driver_cuda"))
        if not torch and device == "cuda":
            problems.append(f"torch on {where} is a build without CUDA")
        elif torch and dali != torch:
            problems.append(f"on {where} torch is for CUDA {torch}, DALI for {dali or 'none'}")
        elif torch and driver and int(driver) < int(torch):
            problems.append(f"the driver of {where} knows CUDA {seen['driver_cuda']}, torch needs {seen['torch_cuda']}")
    if problems:
        fix = "install the torch and DALI wheels of one CUDA version, no newer than the driver's"
        return bad("CUDA versions", listed(problems), fix)
    first = nodes[0]["versions"]
    return good("CUDA versions", f"torch {first['torch_cuda'] or 'without CUDA'}, DALI {first['dali_cuda']}")
