"""The searchers on functions whose best is known, and what a recipe's table of a search may hold."""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from bloodcell.config import Config, decode, encode, override, read_recipe
from bloodcell.runfolder import RunFolder
from jobs.sweep import draws, schedulers
from jobs.sweep.importance import importance
from jobs.sweep.recipe import write_recipe
from jobs.sweep.schedulers import brackets, following, rungs, winner
from jobs.sweep.settings import Settings, read_settings
from jobs.sweep.show import Board
from jobs.sweep.space import Dimension
from jobs.sweep.trials import Journal, Trial
from jobs.train import RECIPES
from shards.errors import BadInput

RATE = Dimension("optim.lr", 1e-4, 1.0, log=True)
NAME = Dimension("model.name", choices=("good", "bad"))
BEST = 0.03


def recall(values: dict, epochs: int) -> float:
    """A score with its peak at BEST, rising with the epochs; the bad network is worse everywhere."""
    distance = abs(math.log10(values["optim.lr"] / BEST))
    return math.exp(-distance) * (1 - 0.5**epochs) * (1.0 if values.get("model.name", "good") == "good" else 0.5)


def searched(
    settings: Settings, folder: Path, score: Callable[[dict, int], float] = recall, workers: int = 1
) -> list[Trial]:
    """Carry a sweep out on a function in place of a training; `workers` trials end in the order they were started."""
    folder.mkdir(exist_ok=True)
    journal, running = Journal(folder), []
    while True:
        due = following(settings, journal.trials, {number for number, _ in running})
        if due is not None and len(running) < workers:
            number, epochs = due
            known = journal.trials
            values = known[number].values if number < len(known) else draws.values(settings, number, known)
            journal.send(number, epochs, values)
            running.append((number, epochs))
        elif running:
            number, epochs = running.pop(0)
            journal.reach(number, epochs, score(journal.trials[number].values, epochs), epochs == settings.epochs)
        else:
            journal.close()
            return journal.trials


@pytest.mark.parametrize("method", ["random", "tpe", "asha", "hyperband"])
def test_the_best_learning_rate_is_found_within_a_factor_3(method: str, tmp_path: Path) -> None:
    if method == "tpe":
        pytest.importorskip("optuna")
    for seed in range(3):
        settings = Settings(space=(NAME, RATE), method=method, trials=27, epochs=27, seed=seed)
        found = searched(settings, tmp_path / str(seed))
        best = winner(found)
        assert best is not None
        assert best.values["model.name"] == "good"
        assert BEST / 3 < best.values["optim.lr"] < BEST * 3


def test_tpe_learns_from_what_was_tried(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    settings = Settings(space=(RATE,), method="tpe", trials=30, epochs=2)
    distance = [abs(math.log10(trial.values["optim.lr"] / BEST)) for trial in searched(settings, tmp_path / "tpe")]
    assert sum(distance[20:]) < 0.5 * sum(distance[:10])


def test_draws_are_a_function_of_seed_and_number_alone() -> None:
    one = Settings(space=(RATE,))
    two = Settings(space=(NAME, RATE), trials=99, method="asha")
    drawn = [draws.draw(one, number)["optim.lr"] for number in range(200)]
    assert drawn == [draws.draw(two, number)["optim.lr"] for number in range(200)]
    assert drawn != [draws.draw(Settings(space=(RATE,), seed=1), number)["optim.lr"] for number in range(200)]
    decades = Counter(math.floor(math.log10(value)) for value in drawn)
    assert set(decades) == {-4, -3, -2, -1}
    assert min(decades.values()) > 30


def test_whole_numbers_reach_both_ends() -> None:
    for log in (False, True):
        dimension = Dimension("data.micro_batch", 2, 5, log=log, whole=True)
        assert {dimension.at(k / 1000) for k in range(1000)} == {2, 3, 4, 5}


def test_rungs_and_brackets_are_those_of_the_paper() -> None:
    settings = Settings(space=(RATE,), epochs=81)
    assert rungs(settings) == [1, 3, 9, 27, 81]
    assert [count for count, _ in brackets(settings)] == [81, 34, 15, 8, 5]  # table 1 of Li et al. 2018
    assert rungs(Settings(space=(RATE,), epochs=15)) == [2, 5, 15]
    assert rungs(Settings(space=(RATE,), epochs=15, min_epochs=3)) == [5, 15]
    assert rungs(Settings(space=(RATE,), epochs=1)) == [1]


def test_hyperband_halves_each_bracket_by_its_best(tmp_path: Path) -> None:
    settings = Settings(space=(RATE,), method="hyperband", epochs=9, trials=9)
    found = searched(settings, tmp_path / "hb")
    assert Counter(trial.sent for trial in found) == {1: 6, 3: 2, 9: 1}
    order = sorted(found, key=lambda trial: -recall(trial.values, 1))
    assert [trial.sent for trial in order[:3]] == [9, 3, 3]


@pytest.mark.parametrize("method", ["asha", "hyperband"])
def test_most_trials_are_paused_early_and_the_best_is_trained_to_its_end(method: str, tmp_path: Path) -> None:
    for trials, workers in ((27, 1), (27, 4), (5, 2), (1, 1)):
        settings = Settings(space=(RATE,), method=method, epochs=9, trials=trials)
        found = searched(settings, tmp_path / f"{trials}-{workers}", workers=workers)
        assert len(found) == trials
        best = winner(found)
        assert best is not None
        assert best.sent == 9
        spent = sum(trial.sent for trial in found)
        assert trials < 9 or spent < 0.6 * 9 * trials


def test_a_failed_trial_is_the_worst_and_is_not_tried_again(tmp_path: Path) -> None:
    settings = Settings(space=(RATE,), method="asha", epochs=3, trials=6)
    journal = Journal(tmp_path)
    while (due := following(settings, journal.trials, set())) is not None:
        number, epochs = due
        assert number == len(journal.trials) or not journal.trials[number].failed
        journal.send(number, epochs, draws.draw(settings, number))
        if number % 2:
            journal.fail(number, "the loss is not finite")
        else:
            journal.reach(number, epochs, 0.1 * number, epochs == 3)
    best = winner(journal.trials)
    assert best is not None
    assert best.number == 4
    assert sum(bool(trial.failed) for trial in journal.trials) == 3


def test_an_interrupted_sweep_makes_the_same_decisions(tmp_path: Path) -> None:
    """At whatever line the journal was cut, and in the middle of one."""
    for method in ("random", "asha", "hyperband"):
        settings = Settings(space=(RATE,), method=method, epochs=9, trials=10)
        whole = searched(settings, tmp_path / method)
        lines = (tmp_path / method / "journal.jsonl").read_bytes().splitlines(keepends=True)
        for kept in range(0, len(lines), 5):
            folder = tmp_path / f"{method}-{kept}"
            folder.mkdir()
            (folder / "journal.jsonl").write_bytes(b"".join(lines[:kept]) + lines[kept][:9])
            assert searched(settings, folder) == whole


def test_importance_names_what_matters(tmp_path: Path) -> None:
    idle = Dimension("optim.momentum", 0.0, 0.9)
    settings = Settings(space=(NAME, RATE, idle), trials=40, epochs=1)
    found = importance(settings, searched(settings, tmp_path / "sweep"))
    assert found is not None
    assert found["optim.momentum"] < 0.1 < found["optim.lr"]
    assert sum(found.values()) == pytest.approx(1)
    assert importance(settings, searched(settings, tmp_path / "sweep")[:3]) is None


def test_a_config_written_as_a_recipe_is_read_back(tmp_path: Path) -> None:
    changed = {"model.dropout": 0.25, "optim.lr": 1e-05, "data.sampling": 3000, "engine.deterministic": True}
    config = override(Config(), {**changed, "model.name": 'odd "name" ü\\', "train.monitor": "val/macro_recall"})
    write_recipe(tmp_path / "r.toml", config, ["What it is."])
    assert read_recipe(tmp_path / "r.toml") == config == decode(encode(config))


def test_the_tuned_recipe_says_its_search() -> None:
    settings = read_settings(RECIPES / "handcrafted-tuned.toml")
    assert settings is not None
    assert (settings.method, settings.trials, settings.epochs) == ("random", 10, 15)
    assert settings.objective == "val/macro_recall"
    names, rates = settings.space
    assert len(names.choices) == 3
    assert (rates.low, rates.high, rates.log) == (1e-4, 1.0, True)
    assert read_settings(RECIPES / "cnn5.toml") is None


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("trails = 3", "did you mean 'trials'?"),
        ("trials = 0", "1 or more"),
        ('method = "randon"', "did you mean 'random'?"),
        ('objective = "test/accuracy"', "on the validation split alone"),
        ('objective = "val/macro_recal"', "did you mean 'val/macro_recall'?"),
        ("epochs = 2\nmin_epochs = 3", "min_epochs 3 is more than epochs 2"),
        ('[sweep.space]\n"optim.rl" = {low=1, high=2}', "did you mean 'optim.lr'?"),
        ("[sweep.space]\noptim.lr = {low=1, high=2}", "in quotes"),
        ('[sweep.space]\n"optim.lr" = {choices=[]}', "has no choices"),
        ('[sweep.space]\n"optim.lr" = {low=1e-3}', "needs low and high"),
        ('[sweep.space]\n"optim.lr" = {low=1e-3, hihg=1}', "did you mean 'high'?"),
        ('[sweep.space]\n"optim.lr" = {low=1.0, high=0.1}', "low must be below high"),
        ('[sweep.space]\n"optim.momentum" = {low=0.0, high=0.9, log=true}', "no logarithm"),
        ('[sweep.space]\n"optim.momentum" = {low=0.0, high=1.9}', "optim.momentum = 1.9 will not do"),
        ('[sweep.space]\n"model.name" = {low="a", high="b"}', "is no number"),
        ('[sweep.space]\n"optim.name" = {choices=["adam", "adam"]}', "twice"),
        ('[sweep.space]\n"train.epochs" = {low=1, high=9}', "sweep.epochs says"),
        ('[sweep.space]\n"tracking.wandb" = {choices=["off"]}', "cannot be searched"),
        ("", "nothing to search"),
    ],
)
def test_a_wrong_table_is_one_clear_line(table: str, said: str, tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    usual = "" if "[sweep" in table or not table else '\n[sweep.space]\n"optim.lr" = {low=0.1, high=0.2}'
    recipe.write_text(f"[sweep]\n{table}{usual}\n")
    with pytest.raises(BadInput) as problem:
        read_settings(recipe)
    assert said in str(problem.value)
    assert "\n" not in str(problem.value)
    assert read_recipe(recipe) == Config()


def test_what_a_sweep_shows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = Settings(space=(NAME, RATE), trials=3, epochs=4, objective="val/loss")
    journal = Journal(tmp_path)
    for number, values in enumerate(draws.draw(settings, number) for number in range(3)):
        journal.send(number, 4, values)
    with Board(settings, journal, lambda number: tmp_path / str(number)) as board:
        journal.reach(0, 4, -0.25, True)
        journal.fail(1, "the loss is not finite")
        board.update({2})
        board.update({2})
        shown = Console(width=120, file=io.StringIO(), record=True)
        shown.print(board._table({2}))
    said = capsys.readouterr().err
    assert said.count("trial 0 finished: val/loss 0.2500") == 1
    assert said.count("trial 1 failed") == 1
    table = shown.export_text()
    for part in ("3 of 3 trials dealt, 2 over", "0.2500", "0.0/4", "optim.lr"):
        assert part in table


def test_a_stop_file_names_the_epoch(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert not run.stop_asked(9)
    (tmp_path / "stop").write_text("3\n")
    assert [run.stop_asked(epoch) for epoch in (2.5, 3.0, 4.0)] == [False, True, True]
    (tmp_path / "stop").write_text("")
    assert run.stop_asked(0.5)


def test_every_method_is_known() -> None:
    assert set(schedulers.SCHEDULERS) == {"random", "hyperband", "asha", "tpe"}
