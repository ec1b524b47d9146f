"""Drawn sets: the same bytes from any number of workers, defects as truth.csv says, colours that tell no class."""

from __future__ import annotations

import csv
import io
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from shards.defects import MARK_COLOURS, NEAR_DUPLICATES, SPOILT, TURNS
from shards.drawing import CLASSES, draw_smear, slide_look
from shards.errors import BadInput
from shards.images import UnusableImageError, decode
from shards.synth import TRUTH_COLUMNS, SynthOptions, contents, synthesise
from shards.synthplan import Entry, class_counts, plan

SMALL = SynthOptions(images=40, size=48, patients=8)

PLANTED = replace(
    SMALL,
    exact_duplicates=5,
    near_duplicates=9,
    contradictions=3,
    outliers=5,
    blurred=3,
    corrupt=6,
    odd_formats=14,
    spanning_patients=3,
    split_folders=True,
    seed=7,
)


def truth_of(folder: Path) -> list[dict[str, str]]:
    with open(folder / "truth.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synth") / "set"
    synthesise(folder, PLANTED)
    return folder


def with_defect(folder: Path, defect: str) -> list[dict[str, str]]:
    return [row for row in truth_of(folder) if row["defect"] == defect]


def test_same_bytes_for_any_number_of_workers(planted: Path, tmp_path: Path) -> None:
    synthesise(tmp_path / "again", PLANTED, workers=2)
    assert files_of(tmp_path / "again") == files_of(planted)
    assert not (tmp_path / "again.partial").exists()


def test_another_seed_draws_other_cells() -> None:
    first, other = (plan(replace(SMALL, seed=seed)) for seed in (0, 1))
    assert contents(first[0], SMALL) != contents(other[0], replace(SMALL, seed=1))


def test_more_images_keep_the_bytes_of_a_scene() -> None:
    entry = plan(SMALL)[3]
    assert contents(entry, SMALL) == contents(entry, replace(SMALL, images=80))


def test_truth_names_every_file(planted: Path) -> None:
    rows = truth_of(planted)
    assert tuple(rows[0]) == TRUTH_COLUMNS
    assert sorted(row["path"] for row in rows) == sorted(set(files_of(planted)) - {"truth.csv"})
    expected = {
        "": 40,
        "exact_duplicate": 5,
        "near_duplicate": 9,
        "contradiction": 3,
        "outlier": 5,
        "blurred": 3,
        "corrupt": 6,
        "odd_format": 14,
    }
    assert Counter(row["defect"] for row in rows) == expected
    for row in rows:
        split, name, file = row["path"].split("/")
        assert split in {"TRAIN", "TEST"}
        assert name == row["class"]
        assert file.startswith(f"{name}_{row['patient']}_")


def test_exact_duplicates_and_contradictions_have_the_same_bytes(planted: Path) -> None:
    by_path = {row["path"]: row for row in truth_of(planted)}
    for defect in ("exact_duplicate", "contradiction"):
        for row in with_defect(planted, defect):
            original = by_path[row["of"]]
            assert (planted / row["path"]).read_bytes() == (planted / row["of"]).read_bytes()
            assert (row["class"] == original["class"]) is (defect == "exact_duplicate")
            assert row["group"] == original["group"]
            assert original["defect"] == ""


def test_only_planted_files_share_their_bytes(planted: Path) -> None:
    rows = [row for row in truth_of(planted) if row["defect"] in {"", "near_duplicate", "blurred", "outlier"}]
    assert len({(planted / row["path"]).read_bytes() for row in rows}) == len(rows)


def test_near_duplicates_show_the_same_in_other_bytes(planted: Path) -> None:
    rows = with_defect(planted, "near_duplicate")
    assert [row["detail"] for row in rows].count("cropped") == 1
    assert {row["detail"] for row in rows} == set(NEAR_DUPLICATES)
    undo = {how: turn for how, turn in TURNS.items() if not how.startswith("rotated")}
    undo |= {
        "rotated": Image.Transpose.ROTATE_90,
        "rotated by 180": Image.Transpose.ROTATE_180,
        "rotated by 270": Image.Transpose.ROTATE_270,
    }
    for row in rows:
        copy: Image.Image = Image.open(planted / row["path"])
        original = Image.open(planted / row["of"])
        assert (planted / row["path"]).read_bytes() != (planted / row["of"]).read_bytes()
        if row["detail"] in undo:
            copy = copy.transpose(undo[row["detail"]])
        first, second = (np.asarray(image.convert("L").resize((12, 12)), float).ravel() for image in (copy, original))
        assert np.corrcoef(first, second)[0, 1] > 0.85, row


def test_corrupt_files_do_not_decode(planted: Path) -> None:
    rows = with_defect(planted, "corrupt")
    assert Counter(row["detail"] for row in rows) == {"truncated": 2, "text": 2, "empty": 2}
    for row in rows:
        data = (planted / row["path"]).read_bytes()
        assert row["path"].endswith(".jpg")
        assert (len(data) == 0) is (row["detail"] == "empty")
        assert data.startswith(b"\xff\xd8") is (row["detail"] == "truncated")
        with pytest.raises(OSError, match=r"truncated|cannot identify"):
            Image.open(io.BytesIO(data)).load()


def test_spoilt_images_differ_as_they_say() -> None:
    options = replace(SMALL, **dict.fromkeys(SPOILT, 1), bit_flips=2, foreign_crowd=4)
    entries = {entry.defect: entry for entry in plan(options) if entry.defect in SPOILT}
    assert set(entries) == set(SPOILT)

    def pixels(entry: Entry) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(contents(entry, options))), float)

    changed = {how: pixels(entry) for how, entry in entries.items()}
    plain = {how: pixels(replace(entry, defect="")) for how, entry in entries.items()}
    assert changed["dark"].mean() < 0.4 * plain["dark"].mean()
    assert 255 - changed["bright"].mean() < 0.2 * (255 - plain["bright"].mean())
    assert np.ptp(changed["saturated"], axis=2).mean() > 1.5 * np.ptp(plain["saturated"], axis=2).mean()
    assert changed["tiny"].shape == (9, 9, 3)
    assert changed["odd_aspect"].shape == (24, 48, 3)
    blue_above_red = [(seen["other_stain"][..., 2] - seen["other_stain"][..., 0]).mean() for seen in (plain, changed)]
    assert blue_above_red[0] > blue_above_red[1] + 20
    for entry in (entry for entry in plan(options) if entry.defect == "bit_flip"):
        if entry.detail == "png":
            flipped, whole = contents(entry, options), contents(replace(entry, defect="odd_format"), options)
            assert sum(a != b for a, b in zip(flipped, whole, strict=True)) == 1
            with pytest.raises(UnusableImageError, match="damaged"):
                decode(flipped)
    crowd = [entry for entry in plan(options) if entry.defect == "foreign_crowd"]
    assert {(entry.detail, entry.name) for entry in crowd} == {("tissue", CLASSES[0]), ("animal", CLASSES[1])}


@pytest.mark.parametrize(
    ("detail", "suffix", "expected"),
    [
        ("bmp", ".bmp", ("BMP", "RGB")),
        ("png", ".png", ("PNG", "RGB")),
        ("grey", ".jpg", ("JPEG", "L")),
        ("cmyk", ".jpg", ("JPEG", "CMYK")),
        ("16-bit", ".png", ("PNG", "I;16")),
        ("palette", ".png", ("PNG", "P")),
        ("exif", ".jpg", ("JPEG", "RGB")),
    ],
)
def test_odd_formats_are_what_they_say(planted: Path, detail: str, suffix: str, expected: tuple[str, str]) -> None:
    rows = [row for row in with_defect(planted, "odd_format") if row["detail"] == detail]
    assert len(rows) == 2
    for row in rows:
        image = Image.open(planted / row["path"])
        assert row["path"].endswith(suffix)
        assert (image.format, image.mode) == expected
        assert image.getexif().get(0x0112) == (6 if detail == "exif" else None)


def test_exif_rotation_gives_back_the_drawn_image() -> None:
    options = replace(SMALL, odd_formats=7)
    entry = next(entry for entry in plan(options) if entry.detail == "exif")
    upright = Image.open(io.BytesIO(contents(replace(entry, defect="", detail=""), options)))
    turned = ImageOps.exif_transpose(Image.open(io.BytesIO(contents(entry, options))))
    lying = Image.open(io.BytesIO(contents(entry, options)))
    apart = [np.abs(np.asarray(upright, float) - np.asarray(image, float)).mean() for image in (turned, lying)]
    assert apart[0] < 4  # two encodings of a noisy little image
    assert apart[1] > 3 * apart[0]


def test_blurred_images_have_less_detail(planted: Path) -> None:
    def sharpness(row: dict[str, str]) -> float:
        grey = np.asarray(Image.open(planted / row["path"]).convert("L"), dtype=float)
        return float(np.abs(np.diff(grey, axis=1)).mean())

    sharp = sorted(sharpness(row) for row in with_defect(planted, ""))
    assert max(sharpness(row) for row in with_defect(planted, "blurred")) < sharp[len(sharp) // 4]


def test_only_the_spanning_patients_lie_in_both_folders(planted: Path, tmp_path: Path) -> None:
    folders: dict[str, set[str]] = {}
    for row in truth_of(planted):
        folders.setdefault(row["patient"], set()).add(row["path"].split("/")[0])
    assert sum(len(found) == 2 for found in folders.values()) == 3
    summary = synthesise(tmp_path / "set", replace(SMALL, split_folders=True))
    assert summary["spanning_patients"] == []
    assert {row["path"].split("/")[0] for row in truth_of(tmp_path / "set")} == {"TRAIN", "TEST"}


def test_every_patient_has_one_class_and_some_images() -> None:
    of_patient: dict[int, set[str]] = {}
    for entry in plan(SynthOptions(images=200, patients=22)):
        of_patient.setdefault(entry.patient, set()).add(entry.name)
    assert sorted(of_patient) == list(range(22))
    assert all(len(names) == 1 for names in of_patient.values())


def test_counts_follow_the_imbalance(tmp_path: Path) -> None:
    assert class_counts(SynthOptions(images=403)) == {"benign": 100, "early": 101, "pre": 101, "pro": 101}
    counts = class_counts(SynthOptions(images=1000, imbalance=8))
    assert sum(counts.values()) == 1000
    assert max(counts.values()) / min(counts.values()) == pytest.approx(8, rel=0.05)
    summary = synthesise(tmp_path / "set", replace(SMALL, imbalance=4.0))
    found = Counter(row["class"] for row in truth_of(tmp_path / "set"))
    assert summary["classes"] == dict(found) == class_counts(replace(SMALL, imbalance=4.0))
    assert summary["files"] == summary["images"] == 40


def test_shortcut_marks_a_corner_by_class_and_nothing_else() -> None:
    options = replace(SMALL, shortcut=True)
    for marked, plain in list(zip(plan(options), plan(SMALL), strict=True))[::5]:
        images = [np.asarray(Image.open(io.BytesIO(contents(*pair)))) for pair in ((marked, options), (plain, SMALL))]
        assert np.abs(images[0][:32].astype(int) - images[1][:32]).max() <= 16
        bar = images[0][44:45, 41:44].reshape(-1, 3).mean(0)
        nearest = np.abs(np.array(MARK_COLOURS) - bar).sum(1).argmin()
        assert nearest == CLASSES.index(marked.name)
        assert marked.detail == "shortcut"


def test_drawing_has_the_size_asked_for() -> None:
    for size in (32, 75, 200):
        picture = draw_smear("pro", slide_look(0, 0, 0), np.random.default_rng(0), size)
        assert picture.shape == (size, size, 3)
        assert picture.dtype == np.uint8


def colour_statistics(pixels: np.ndarray) -> np.ndarray:
    """Means, standard deviations and percentiles of each channel: [3 * 14]."""
    flat = pixels.reshape(-1, 3)
    marks = np.percentile(flat, [1, 5, 10, 15, 20, 25, 35, 50, 75, 90, 95, 99], axis=0)
    return np.concatenate([flat.mean(0), flat.std(0), marks.ravel()])


@pytest.mark.parametrize("seed", [0, 1])
def test_colours_do_not_tell_the_class(seed: int) -> None:
    options = SynthOptions(images=800, size=64, patients=40, seed=seed)
    entries = plan(options)
    pictures = (np.asarray(Image.open(io.BytesIO(contents(entry, options)))) for entry in entries)
    features = np.stack([colour_statistics(picture) for picture in pictures])
    labels = np.array([CLASSES.index(entry.name) for entry in entries])
    patients = np.array([entry.patient for entry in entries])
    folds = list(GroupKFold(5).split(features, labels, patients))
    for penalty in (0.1, 1.0):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=penalty, max_iter=200))
        with threadpool_limits(1):  # many tiny products: threads would only wait for each other
            accuracy = cross_val_score(model, features, labels, cv=folds).mean()
        assert accuracy < 0.6


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"images": -1}, "images"),
        ({"images": 10}, "images"),
        ({"images": 60, "imbalance": 100.0}, "images"),
        ({"size": 8}, "size"),
        ({"size": 5000}, "size"),
        ({"patients": 3}, "patients"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"imbalance": 0.5}, "imbalance"),
        ({"imbalance": float("nan")}, "imbalance"),
        ({"corrupt": -2}, "corrupt"),
        ({"contradictions": 401}, "contradictions"),
        ({"contradictions": 400, "exact_duplicates": 1}, "contradictions"),
        ({"spanning_patients": 1}, "spanning_patients"),
        ({"spanning_patients": 25, "split_folders": True}, "spanning_patients"),
    ],
)
def test_options_that_make_no_sense(tmp_path: Path, changes: dict[str, float], where: str) -> None:
    with pytest.raises(BadInput) as caught:
        synthesise(tmp_path / "set", replace(SynthOptions(), **changes))  # type: ignore[arg-type]
    assert caught.value.where == where
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(BadInput, match="not an empty folder"):
        synthesise(tmp_path, SMALL)
    with pytest.raises(BadInput, match="not an empty folder"):
        synthesise(tmp_path / "mine.txt", SMALL)
    with pytest.raises(BadInput, match="process"):
        synthesise(tmp_path / "set", SMALL, workers=0)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    synthesise(tmp_path / "set", SMALL)
    assert len(truth_of(tmp_path / "set")) == 40


def test_every_option_has_help() -> None:
    assert all(option.metadata["help"] for option in fields(SynthOptions))
