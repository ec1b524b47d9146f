"""The account of a profile: where a step's time goes, over all ranks, as facts and as one page."""

from __future__ import annotations

import statistics
from typing import Any

from bloodcell.engine.phases import AGREE, BACKWARD, FORWARD, OPTIMIZER, PARTS, WAIT

SCHEMA = "bloodcell/profile/1"
HOST = "host"
MEANING = {
    WAIT: "the next batch was not there yet",
    FORWARD: "network and loss",
    BACKWARD: "gradients, and what of their averaging over ranks nothing hides",
    OPTIMIZER: "norm, clipping, moving the weights",
    AGREE: "one small sum over ranks: is all finite, which samples, was one signalled",
    HOST: "all the rest of the loop",
}


def account(
    told: list[dict[str, Any]], device: str, images: int, timed: list[int], traced: list[int]
) -> dict[str, Any]:
    """Return the facts of a profile.

    Args:
        told: of each rank {steps: [(seconds, {part: seconds})]} and, where it traced, {all_reduce, exposed, busy,
            busiest}.
        device: cpu or cuda.
        images: in a step.
        timed: the steps that were timed.
        traced: the steps that were traced.

    Returns:
        {schema, device, ranks, images, timed, traced, step, parts, trace}: seconds of a step, {median, low, high} over
        ranks of each rank's median over steps (of the mean for parts, so that they sum to the whole).
    """
    shares = [_means(one["steps"]) for one in told]
    traces = [one for one in told if "all_reduce" in one]
    trace: dict[str, Any] | None = None
    if traces:
        trace = {name: _over(one[name] for one in traces) for name in ("all_reduce", "exposed")}
        busy = [one["busy"] for one in traces if one["busy"] is not None]
        trace = {**trace, "busy": _over(busy) if busy else None, "busiest": traces[0]["busiest"]}
    return {
        "schema": SCHEMA,
        "device": device,
        "ranks": len(told),
        "images": images,
        "timed": [timed[0], timed[-1]],
        "traced": [traced[0], traced[-1]] if trace else None,
        "step": _over(statistics.fmean(seconds for seconds, _ in one["steps"]) for one in told),
        "parts": {name: _over(one[name] for one in shares) for name in (*PARTS, HOST)},
        "trace": trace,
    }


def page(found: dict[str, Any]) -> str:
    """Return the account as one page of Markdown."""
    step, (first, last) = found["step"]["median"], found["timed"]
    lines = [
        "# Where a step's time goes",
        "",
        f"{found['ranks']} rank(s) on {found['device']}, {found['images']} images a step; steps {first} to {last}: "
        f"{1000 * step:.1f} ms a step, {found['images'] / step:.0f} images/s.",
        "",
        "| part | ms | share | least and most of a rank | |",
        "| --- | ---: | ---: | ---: | --- |",
    ]
    for name, of in found["parts"].items():
        spread = f"{1000 * of['low']:.1f} to {1000 * of['high']:.1f}"
        lines.append(f"| {name} | {1000 * of['median']:.1f} | {of['median'] / step:.1%} | {spread} | {MEANING[name]} |")
    if found["device"] == "cuda":
        lines += [
            "",
            "While these steps were timed the host waited for the GPU after each part; otherwise they overlap.",
        ]
    return "\n".join([*lines, "", *_traced(found)]) + "\n"


def _traced(found: dict[str, Any]) -> list[str]:
    trace = found["trace"]
    if trace is None:
        return ["The run ended before steps could be traced."]
    talk, exposed = trace["all_reduce"]["median"], trace["exposed"]["median"]
    first, last = found["traced"]
    lines = [
        f"Steps {first} to {last} were traced (`trace-RANK.json.gz`, for chrome://tracing or ui.perfetto.dev). "
        f"Communication between ranks was under way for {1000 * talk:.1f} ms of a step; nothing was computed "
        f"meanwhile in {1000 * exposed:.1f} ms of them."
    ]
    if trace["busy"]:
        lines.append(f"The GPU worked for {1000 * trace['busy']['median']:.1f} ms of a step.")
    lines += ["", "| operation (first rank) | ms of a step | calls |", "| --- | ---: | ---: |"]
    lines += [f"| `{name}` | {1000 * seconds:.2f} | {calls} |" for name, seconds, calls in trace["busiest"]]
    return lines


def _means(steps: list[tuple[float, dict[str, float]]]) -> dict[str, float]:
    means = {name: statistics.fmean(parts[name] for _, parts in steps) if steps else 0.0 for name in PARTS}
    whole = statistics.fmean(seconds for seconds, _ in steps) if steps else 0.0
    return {**means, HOST: whole - sum(means.values())}


def _over(values: Any) -> dict[str, float]:
    found = [round(value, 6) for value in values]
    return {"median": statistics.median(found), "low": min(found), "high": max(found)}
