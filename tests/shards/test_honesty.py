"""Classes with too few groups: the rule, the sentence, and the real set that needs it."""

from __future__ import annotations

from pathlib import Path

import pytest

from shards.format import read_dataset
from shards.honesty import sentence, thin_classes
from tests.conftest import bloodcell

PARTS = ["train"] * 6 + ["val"] * 2 + ["test"] * 2


def names(groups: list[str], parts: list[str] = PARTS) -> list[str]:
    return [thin.name for thin in thin_classes([0] * len(groups), groups, parts, ["a"])]


def test_a_class_of_many_even_groups_is_honest() -> None:
    assert names([f"p{i}" for i in range(10)]) == []
    assert names([""] * 10) == []
    assert thin_classes([], [], [], ["a"]) == []
    assert thin_classes([1] * 10, [""] * 10, PARTS, ["a", "b"]) == []


def test_fewer_than_five_groups_are_thin() -> None:
    groups = ["p0", "p0", "p0", "p1", "p1", "p1", "p2", "p2", "p3", "p3"]
    (thin,) = thin_classes([0] * 10, groups, PARTS, ["a"])
    assert (thin.images, thin.groups, thin.largest, thin.share) == (10, 4, "p0", 0.3)
    assert thin.parts == {"train": 2, "val": 1, "test": 1}
    assert sentence(thin) == (
        "class 'a' has 4 independent groups (train 2, val 1, test 1), the largest (p0) with 30 % of its images: "
        "its figures rest on few patients or slides"
    )


def test_a_group_with_more_than_half_is_thin() -> None:
    rest = ["", "", "", "", ""]
    assert names(["p0"] * 5 + rest) == []
    assert names(["p0"] * 6 + rest[:4]) == ["a"]


def test_a_part_with_one_group_is_thin() -> None:
    assert names([*(f"p{i}" for i in range(6)), "v", "v", "t1", "t2"]) == ["a"]
    assert names([f"p{i}" for i in range(10)], ["train"] * 8 + ["val"] * 2) == []
    assert names([""] * 10, ["train"] * 9 + ["test"]) == ["a"]


def test_one_group_alone_is_said_plainly() -> None:
    (thin,) = thin_classes([0, 0], ["p0", "p0"], ["test", "test"], ["a"])
    assert sentence(thin) == "class 'a' is one group: its figures say nothing about another patient or slide"


@pytest.mark.realdata
def test_the_basophils_of_raabin5_come_from_three_days_two_of_which_show_the_same_cells(
    real_data: Path, tmp_path: Path
) -> None:
    arguments = ("pack", real_data / "raabin5", tmp_path / "set", "--dataset", "raabin5", "--workers", 2)
    refused = bloodcell(*arguments)
    assert refused.code == 2, refused.err
    assert "class 'Basophil' has 130 images in 2 groups, too few for 3 parts" in refused.err
    assert "date-20190527+date-20190531 93, date-20190526 37" in refused.err
    done = bloodcell(*arguments, "--split", "80/0/20")
    assert done.code == 0, done.err
    assert "class 'Basophil' has 2 independent groups (train 1, test 1), the largest" in done.err
    assert "(date-20190527+date-20190531) with 72 %" in done.err
    split = read_dataset(tmp_path / "set").split
    thin = {row["name"]: row for row in split["thin_classes"]}
    assert thin["Basophil"]["groups"] == 2
    assert thin["Eosinophil"]["share"] > 0.5
    assert "95-8-27-1" in thin["Eosinophil"]["largest"]
    assert not {"Lymphocyte", "Monocyte", "Neutrophil"} & thin.keys()
    page = (tmp_path / "set" / "report.html").read_text()
    assert "Basophil&#39; has 2 independent groups" in page
