"""Averaged weights: one network from several runs of one architecture, at the cost of one.

Wortsman et al., Model soups: averaging weights of multiple fine-tuned models improves accuracy without increasing
inference time, ICML 2022. It works where the runs end in one basin of the loss: from the same pretrained weights, or
from one run's own past; networks trained from different random weights do not mix. The running statistics of BatchNorm
belong to other weights and are estimated again over the training split (Izmailov et al., UAI 2018, section 3.2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from bloodcell.engine.reestimate import estimate_statistics
from bloodcell.engine.subject import Subject
from bloodcell.evaluation import metrics
from bloodcell.evaluation.predictions import Predictions
from shards.errors import BadInput

State = Mapping[str, torch.Tensor]


@dataclass(frozen=True, eq=False)
class Soup:
    """What soup() returns: the network, the places of the runs in it, and what the greedy choice saw.

    Attributes:
        model: with averaged weights, on its device.
        kept: places of the runs that were averaged, in the order in which they came in.
        tried: {run, value, kept} for each run of a greedy choice.
    """

    model: nn.Module
    kept: list[int]
    tried: list[dict[str, Any]]


def average(states: Sequence[State]) -> dict[str, torch.Tensor]:
    """Return the mean of several state dicts, summed in float64 in their order; whole numbers are the first one's.

    Raises:
        BadInput: the states do not have the same tensors.
    """
    first = states[0]
    for state in states[1:]:
        if state.keys() != first.keys() or any(state[name].shape != first[name].shape for name in first):
            raise BadInput("the runs do not have the same tensors", "", "average runs of one architecture")
    found = {}
    for name, tensor in first.items():
        if not tensor.is_floating_point():
            found[name] = tensor.clone()
            continue
        total = torch.zeros_like(tensor, dtype=torch.float64)
        for state in states:
            total += state[name].double()
        found[name] = (total / len(states)).to(tensor.dtype)
    return found


def soup(subjects: Sequence[Subject], validations: Sequence[float] | None, monitor: str) -> Soup:
    """Return the averaged network. Collective.

    Args:
        subjects: the runs, of one architecture, on their own set.
        validations: each run's value of the monitored metric on the validation split: the greedy soup takes the runs
            from the best on and keeps each that does not make the average worse; None averages all.
        monitor: the metric, such as val/macro_f1.
    """
    first = subjects[0]
    states = [{name: value.detach().clone() for name, value in s.model.state_dict().items()} for s in subjects]
    model = first.model
    if validations is None:
        _load(model, average(states), first)
        return Soup(model, list(range(len(subjects))), [])
    sign = -1.0 if monitor == "val/loss" else 1.0
    order = sorted(range(len(subjects)), key=lambda place: (-sign * validations[place], place))
    kept, best = [order[0]], validations[order[0]]
    tried = [{"run": order[0], "value": best, "kept": True}]
    for place in order[1:]:
        _load(model, average([states[i] for i in (*kept, place)]), first)
        value = monitored(first.inference(model, first.split("val")), monitor)
        better = sign * value >= sign * best
        tried.append({"run": place, "value": value, "kept": better})
        if better:
            kept, best = [*kept, place], value
    if len(kept) == 1:
        model.load_state_dict(states[kept[0]])
    else:
        _load(model, average([states[i] for i in kept]), first)
    return Soup(model, kept, tried)


def monitored(predictions: Predictions | None, monitor: str) -> float:
    """Return a run's monitored metric on its validation predictions, the same number on every rank. Collective.

    Args:
        predictions: of the validation split, on the first rank.
        monitor: val/loss, or val/ with a metric of metrics.overall.

    Raises:
        BadInput: there is no such metric of a table of predictions.
    """
    name = monitor.removeprefix("val/")
    value = torch.zeros((), dtype=torch.float64)
    if predictions is not None:
        exact = metrics.overall(
            metrics.confusion_matrix(predictions.labels, predictions.predicted(), len(predictions.classes))
        )
        values = {**{key: float(one) for key, one in exact.items()}, "loss": float(predictions.losses().mean())}
        value.fill_(values.get(name, float("nan")))
    dist.broadcast(value, 0)
    if bool(torch.isnan(value)):
        raise BadInput(f"the runs were chosen by {monitor}, which their predictions do not tell", "--greedy")
    return float(value)


def _load(model: nn.Module, state: State, subject: Subject) -> None:
    model.load_state_dict(dict(state))
    model.eval()
    estimate_statistics(model, subject.inference, subject.split("train"), subject.config.train.seed)
