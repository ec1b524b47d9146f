"""`bloodcell bench evaluate`: time and memory of judging very many predictions, beside scikit-learn's bare values.

The predictions are drawn. Each case runs in a process of its own, so that its peak memory is its own; the peak holds
the table of predictions itself. scikit-learn computes the same metrics without intervals or any further section.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING

from jobs.bench.result import Result, Row, measured
from shards.console import progress
from shards.errors import BadInput, EnvironmentFault

if TYPE_CHECKING:
    from bloodcell.evaluation.predictions import Predictions

SAMPLES, QUICK = 10**7, 10**5
CLASSES = "4,8"
PATIENTS = 1000
SIGNAL = 3.0
"""How far the true class's logit stands out of the noise: about 90 % accuracy."""
FIRST_SPLIT = 10
"""The judged split is so many times as large as the validation split."""
MIB = 2**20
SKLEARN = "scikit-learn, bare values"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `bloodcell bench evaluate`."""
    parser.add_argument("--samples", type=int, help=f"predictions to judge ({SAMPLES}; with --quick {QUICK})")
    parser.add_argument("--classes", default=CLASSES, help="numbers of classes, with commas (%(default)s)")
    parser.add_argument(
        "--patients", type=int, default=PATIENTS, help="patients of the cases that have any (%(default)s)"
    )
    parser.add_argument("--repeats", type=int, default=1, help="repeats of each case (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="few samples, for a check in passing")


def run_arguments(args: argparse.Namespace) -> Result:
    """Run the benchmark as the flags say; arguments and errors as in `run`."""
    classes = args.classes.split(",")
    if not all(word.isascii() and word.isdigit() for word in classes):
        raise BadInput(f"not numbers of classes: {args.classes}", "bench evaluate", "give some such as 4,8")
    samples = args.samples if args.samples is not None else QUICK if args.quick else SAMPLES
    return run(samples, [int(word) for word in classes], args.patients, args.repeats)


def run(samples: int, classes: list[int], patients: int, repeats: int) -> Result:
    """Judge `samples` drawn predictions of each number of classes, without patients and with them.

    Raises:
        BadInput: a number is too small.
        EnvironmentFault: the memory is not enough.
    """
    if samples < 100 or min(classes) < 2 or repeats < 1 or not 2 <= patients <= samples:
        raise BadInput("a number is too small, or there are more patients than samples", "bench evaluate")
    cases = [(count, group) for count in classes for group in (0, patients)]
    rows: list[Row] = []
    for count, group in progress(cases, "judging", len(cases)):
        title = f"{samples:,} x {count} classes, " + (f"{group:,} patients" if group else "no patients")
        names = ["metrics with intervals", "all sections", SKLEARN]
        works: list[Callable[[int, int, int], tuple[float, float]]] = [_metrics, _everything, _bare]
        found = {
            name: [_alone(work, samples, count, group) for _ in range(repeats)]
            for name, work in zip(names, works, strict=True)
        }
        for index, unit in enumerate(("CPU-s", "MiB")):
            figures = {name: [pair[index] for pair in pairs] for name, pairs in found.items()}
            kind = "" if unit == "CPU-s" else ", peak memory"
            base = f"{title}: {SKLEARN}{kind}"
            rows += [measured(f"{title}: {n}{kind}", v, unit, base, figures[SKLEARN]) for n, v in figures.items()]
    listed = ",".join(map(str, classes))
    command = f"bloodcell bench evaluate --samples {samples} --classes {listed} --patients {patients}"
    return Result(f"{command} --repeats {repeats}", rows)


def _alone(
    work: Callable[[int, int, int], tuple[float, float]], samples: int, classes: int, patients: int
) -> tuple[float, float]:
    """Run the work in a fresh process; return its CPU-seconds and the most MiB that the process held."""
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            return pool.submit(work, samples, classes, patients).result()
    except BrokenProcessPool:
        raise EnvironmentFault(
            f"judging {samples:,} predictions was killed", "bench evaluate", "most likely the memory: fewer --samples"
        ) from None


def _metrics(samples: int, classes: int, patients: int) -> tuple[float, float]:
    from bloodcell.evaluation.result import evaluate_predictions

    return _timed(evaluate_predictions, draw("test", samples, classes, patients))


def _everything(samples: int, classes: int, patients: int) -> tuple[float, float]:
    from bloodcell.evaluation.judge import judge

    validation = draw("val", max(samples // FIRST_SPLIT, 50), classes, patients)
    return _timed(lambda predictions: judge(predictions, validation), draw("test", samples, classes, patients))


def _bare(samples: int, classes: int, patients: int) -> tuple[float, float]:
    import numpy as np
    from sklearn import metrics

    def values(predictions: Predictions) -> None:
        labels, predicted = predictions.labels, predictions.predicted()
        probabilities = predictions.probabilities()
        metrics.classification_report(labels, predicted, output_dict=True, zero_division=0)
        metrics.confusion_matrix(labels, predicted)
        metrics.matthews_corrcoef(labels, predicted)
        metrics.cohen_kappa_score(labels, predicted)
        metrics.log_loss(labels, probabilities)
        for label in np.unique(labels):
            metrics.roc_auc_score(labels == label, probabilities[:, label])
            metrics.average_precision_score(labels == label, probabilities[:, label])

    return _timed(values, draw("test", samples, classes, patients))


def _timed(work: Callable[[Predictions], object], predictions: Predictions) -> tuple[float, float]:
    begin = time.process_time()
    work(predictions)
    spent = time.process_time() - begin
    return spent, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MIB


def draw(split: str, samples: int, classes: int, patients: int) -> Predictions:
    """Return drawn predictions; patients of 0 are samples that stand alone, else each patient leans to one class.

    Args:
        split: test or val; they share no sample.
        samples, classes, patients: how many.
    """
    import numpy as np

    from bloodcell.evaluation.predictions import Predictions

    random = np.random.default_rng([samples, classes, patients, split == "val"])
    labels = random.integers(0, classes, samples, dtype=np.int32)
    groups = [""] * samples
    if patients:
        patient = random.integers(0, patients, samples)
        labels = np.where(random.random(samples) < 0.5, patient % classes, labels).astype(np.int32)
        names = [f"{split}-{index}" for index in range(patients)]
        groups = [names[index] for index in patient]
    logits = random.standard_normal((samples, classes), dtype=np.float32)
    logits[np.arange(samples), labels] += np.float32(SIGNAL)
    ids = np.arange(samples, dtype=np.int64) + (0 if split == "test" else 10**12)
    keys = [f"{split}{index:08d}" for index in range(samples)]
    names = [f"class{index}" for index in range(classes)]
    return Predictions(ids, keys, labels, groups, logits, names, "bench", "drawn", split, "drawn")
