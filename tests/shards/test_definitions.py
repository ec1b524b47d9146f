"""Definitions of known data sets: their files, the groups, folds, trees and labels that they find in real names."""

from __future__ import annotations

import csv
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from shards.clean import _exact, _join_names
from shards.definitions import Definition, Release, names, read_definition
from shards.errors import BadInput
from shards.examine import Image
from shards.seen import Images
from shards.sources import Item
from shards.sources.defined import list_defined, warn_of_counts

PRELIM = "C-NMC_test_prelim_phase_data"


def _touch(root: Path, *files: str) -> Path:
    for name in files:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return root


@pytest.mark.parametrize("name", names())
def test_each_definition_says_where_the_set_comes_from(name: str) -> None:
    definition = read_definition(name)
    assert definition.name == name
    assert definition.title
    assert definition.page
    assert definition.by_hand
    classes = set(definition.classes.values())
    assert all(set(release.counts) == classes for release in definition.releases)
    assert name == "folder" or (definition.citation and definition.licence and definition.releases)


def test_the_sets_that_the_project_knows() -> None:
    assert names() == ["all4", "bloodmnist", "cnmc", "folder", "pbc8", "raabin5", "wbc4"]
    totals = {name: sorted(sum(r.counts.values()) for r in read_definition(name).releases) for name in names()}
    assert totals["all4"] == [3242, 3256, 6512]
    assert totals["pbc8"] == totals["bloodmnist"] == [17092]
    assert totals["cnmc"] == [10661, 10661 + 1867]
    assert totals["wbc4"] == [9957 + 2487, 9957 + 2487 + 71]


@pytest.mark.parametrize(
    ("path", "group"),
    [
        ("fold_0/all/UID_11_10_1_all.bmp", "patient-11"),
        ("fold_0/hem/UID_H11_10_1_hem.bmp", "healthy-11"),
        ("fold_2/hem/UID_h3_10_1_hem.bmp", "healthy-3"),
        ("fold_2/hem/uid_H3_2_1_HEM.BMP", "healthy-3"),
        ("782.bmp", ""),
    ],
)
def test_groups_of_cnmc(path: str, group: str) -> None:
    assert read_definition("cnmc").group(path) == group


@pytest.mark.parametrize(
    ("path", "group"),
    [
        ("Monocyte/95-8-10-1_1032_1.jpg", "smear-95-8-10-1"),
        ("Basophil/20190526_163027_0.jpg", "date-20190526"),
        ("Basophil/other.jpg", ""),
    ],
)
def test_groups_of_raabin5(path: str, group: str) -> None:
    assert read_definition("raabin5").group(path) == group


def test_cnmc_folds_and_the_table_of_the_preliminary_phase(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _touch(
        tmp_path,
        "C-NMC_Leukemia/training_data/fold_0/all/UID_57_1_1_all.bmp",
        "C-NMC_Leukemia/training_data/fold_2/hem/UID_h3_4_1_hem.bmp",
        f"C-NMC_Leukemia/validation_data/{PRELIM}/1.bmp",
        f"C-NMC_Leukemia/validation_data/{PRELIM}/2.bmp",
        "C-NMC_Leukemia/testing_data/C-NMC_test_final_phase_data/1.bmp",
    )
    table = tmp_path / "C-NMC_Leukemia" / "validation_data" / f"{PRELIM}_labels.csv"
    table.write_text("Patient_ID,new_names,labels\nUID_57_29_1_all.bmp,1.bmp,1\nUID_H9_2_1_hem.bmp,2.bmp,0\n")
    listing = list_defined(tmp_path, read_definition("cnmc"))
    assert {item.source.rsplit("/", 2)[-1]: item.label for item in listing.items if item.part == "prelim"} == {
        "1.bmp": "all",
        "2.bmp": "hem",
    }
    assert [(item.group, item.part) for item in listing.items] == [
        ("patient-57", "fold0"),
        ("healthy-3", "fold2"),
        ("patient-57", "prelim"),
        ("healthy-9", "prelim"),
    ]
    assert listing.ignored == 2
    assert "1 images have no class of cnmc" in capsys.readouterr().err
    table.write_text("Patient_ID,new_names,labels\nUID_57_29_1_all.bmp,1.bmp,ALL\n")
    with pytest.raises(BadInput, match="has no meaning"):
        list_defined(tmp_path, read_definition("cnmc"))
    table.write_text("name,label\n1.bmp,1\n")
    with pytest.raises(BadInput, match="no column 'new_names'"):
        list_defined(tmp_path, read_definition("cnmc"))


def test_all4_trees_of_the_same_cells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names_ = ("Benign/WBC-Benign-001.jpg", "Pre/WBC-Malignant-Pre-001.jpg")
    _touch(tmp_path, *(f"{tree}/{name}" for tree in ("Original", "Segmented") for name in names_))
    all4 = read_definition("all4")
    assert [item.source for item in list_defined(tmp_path, all4).items] == [f"Original/{name}" for name in names_]
    assert "Original is taken, 2 other images are not" in capsys.readouterr().err
    assert all(i.source.startswith("Segmented") for i in list_defined(tmp_path, all4, "segmented").items)
    both = list_defined(tmp_path, all4, "all").items
    assert [item.label for item in both] == ["Benign", "Pre", "Benign", "Pre"]
    groups = [item.group for item in both]
    assert groups[:2] == groups[2:] == ["pair-Benign/WBC-Benign-001", "pair-Pre/WBC-Malignant-Pre-001"]
    with pytest.raises(BadInput, match=r"no tree 'Orginal'.*did you mean 'Original'"):
        list_defined(tmp_path, all4, "Orginal")


def test_all4_spellings_of_the_other_release(tmp_path: Path) -> None:
    _touch(
        tmp_path,
        "Blood cell Cancer [ALL]/Benign/Snap_001.jpg",
        "Blood cell Cancer [ALL]/[Malignant] early Pre-B/Snap_001.jpg",
        "Blood cell Cancer [ALL]/[Malignant] Pre-B/Snap_001.jpg",
        "Blood cell Cancer [ALL]/[malignant] pro_b/Snap_001.jpg",
        "pre-processed/Snap_001.jpg",
    )
    found = {item.source.split("/")[1]: item.label for item in list_defined(tmp_path, read_definition("all4")).items}
    assert found == {
        "Benign": "Benign",
        "[Malignant] early Pre-B": "Early",
        "[Malignant] Pre-B": "Pre",
        "[malignant] pro_b": "Pro",
    }


def test_other_counts_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    definition = Definition("t", name="mine", releases=[Release("first", {"a": 1, "b": 2})])
    items = [Item(Path(), f"{name}.jpg", name[0], "") for name in ("a1", "b1", "b2")]
    hidden = Item(Path(), "b/.DS_1.jpg", "b", "")
    warn_of_counts([*items, hidden], definition)
    assert capsys.readouterr().err == ""
    warn_of_counts(items[:2], definition)
    assert "mine has other counts here (a 1, b 1) than in any known release (first: a 1, b 2)" in " ".join(
        capsys.readouterr().err.split()
    )


def test_a_definition_of_ones_own(tmp_path: Path) -> None:
    own = tmp_path / "mine.toml"
    own.write_text("title = 'mine'\ngroups = ['(?P<slide>S\\d+)_']\nsplits = { learning = 'train', exam = 'test' }\n")
    root = _touch(tmp_path / "in", "Learning/a/S1_1.png", "Learning/b/s1_2.png", "exam/a/S2_1.png", "exam/b/x.png")
    items = list_defined(root, read_definition(str(own))).items
    assert [(item.label, item.group, item.part) for item in items] == [
        ("a", "slide-s1", "train"),
        ("b", "slide-s1", "train"),
        ("a", "slide-s2", "test"),
        ("b", "", "test"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("title = ", "not TOML"),
        ("title = 't'\ngroup = []", "no key 'group'.*did you mean 'groups'"),
        ("title = 't'\nname = 'x'", "no key 'name'"),
        ("title = 3", "title"),
        ("title = 't'\ngroups = ['(']", "not a regular expression"),
        ("title = 't'\ngroups = ['(a)']", "no named part"),
        ("title = 't'\nfold = '(?P<f>a)'", "no part named fold"),
        ("title = 't'\n[[labels]]\nfile = 'a'\nfolders = 'b'", "no key 'folders'.*did you mean 'folder'"),
    ],
)
def test_definitions_that_will_not_do(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "own.toml"
    path.write_text(text)
    with pytest.raises(BadInput, match=message):
        read_definition(str(path))


def test_unknown_definitions(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no data set 'raabin'.*did you mean 'raabin5'"):
        read_definition("raabin")
    with pytest.raises(BadInput, match="cannot be read"):
        read_definition(str(tmp_path / "none.toml"))
    _touch(tmp_path, "x/1.jpg")
    with pytest.raises(BadInput, match="no image of all4 here"):
        list_defined(tmp_path, read_definition("all4"))


def _manifest(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.realdata
def test_patients_of_cnmc_that_share_an_image_are_one_group(real_data: Path) -> None:
    cnmc = read_definition("cnmc")
    rows = [row for row in _manifest(real_data / "cnmc" / "manifest.csv") if row["phase"] == "train"]
    images = []
    for row in rows:
        item = Item(Path(row["path"]), row["path"], row["label"], cnmc.group(row["path"]))
        images.append(Image(item, row["sha256"], row["sha256"], 0, 1, 450, 450, "RGB", "BMP"))
    ids = {row["patient_id"].upper(): image.item.group for row, image in zip(rows, images, strict=True)}
    assert len(ids) == len(set(ids.values())) == 73
    assert "" not in ids.values()
    assert {image.item.group for image in images if "_h3_" in image.item.source.lower()} == {"healthy-3"}
    joined = _join_names([image.item.group for image in images], _exact(Images.of(images), {})[2])
    assert joined[ids["20"]] == joined[ids["21"]]
    assert joined[ids["51"]] == joined[ids["75"]] == joined[ids["78"]]
    assert joined[ids["11"]] != joined["healthy-11"]
    assert joined[ids["20"]] != joined[ids["51"]]


@pytest.mark.realdata
def test_raabin5_groups_are_the_smears_of_the_manifest(real_data: Path) -> None:
    items = list_defined(real_data / "raabin5", read_definition("raabin5")).items
    ours = {item.source: item.group for item in items}
    truth = {row["path"]: row["group"] for row in _manifest(real_data / "raabin5" / "manifest.csv")}
    assert ours.keys() == truth.keys()
    pairs = defaultdict(set)
    for source, group in ours.items():
        pairs[truth[source]].add(group)
    assert all(len(groups) == 1 for groups in pairs.values())
    assert len({group for groups in pairs.values() for group in groups}) == len(pairs) == len(set(truth.values()))


@pytest.mark.realdata
def test_all4_classes_are_those_of_the_manifest(real_data: Path) -> None:
    items = list_defined(real_data / "all4", read_definition("all4")).items
    truth = {row["path"]: row["class"] for row in _manifest(real_data / "all4" / "manifest.csv")}
    assert {item.source: item.label for item in items} == truth
    assert Counter(item.part for item in items) == {"": 2604}
