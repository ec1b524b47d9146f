"""What is shown while a command works: how far it is, how fast, how long it will take, what was done before."""

from __future__ import annotations

import re

import pytest

from shards import console


def test_lines_of_progress_say_rate_and_time_that_remains(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 2.0, 4.0, 4.0])  # begin, two items, the end
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(console, "LOG_SECONDS", 3.0)
    assert list(console.progress("ab", "examining", 12, done=2)) == ["a", "b"]
    said = capsys.readouterr().err.splitlines()
    assert said == ["examining: 4/12, 0.5/s, 16 s left", "examining: 2 in 4.0 s"]


def test_on_a_terminal_a_bar_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "is_terminal", lambda: True)
    monkeypatch.setattr(console, "_console", console.Console(stderr=True, force_terminal=True, width=120))
    assert list(console.progress(range(3), "packing", 5, done=2)) == [0, 1, 2]
    last = re.sub(r"\x1b\[[^a-zA-Z]*[a-zA-Z]", "", capsys.readouterr().err).strip().splitlines()[-1]
    assert re.search(r"packing .* 5/5 .*/s \d:\d\d:\d\d$", last)


def test_the_name_of_a_file_does_not_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    console.warn("images/\x1b[2Jcell\x9b.jpg is empty")
    assert capsys.readouterr().err == "warning: images/\\x1b[2Jcell\\x9b.jpg is empty\n"
