"""The report is one page that holds everything, read back as a browser would.

Its figures agree with its tables.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from Testing.medmap.report.invented_evaluations import evaluation

from medmap import NOTICE
from medmap.commands.names import distinct_names
from medmap.commands.report import read_sources, write_report
from medmap.commands.report_sources import Figures
from medmap.errors import InputDataError, OutputError, UsageError
from medmap.report.curves import _spans_decades, modality_curves, read_log, training_curves
from medmap.report.slices import load_slice, save_slice, take_slice
from medmap.task import BRATS
from medmap.volume import Volume

VOID = {"meta", "img", "br", "link"}


class Reader(HTMLParser):
    """Counts what matters and checks that every element is closed in order."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.links, self.images, self.words, self.tags = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        self.links += [found[key] for key in ("href", "src") if key in found]
        if tag == "img":
            self.images.append(found)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluations")
    return evaluation(folder / "a", "first-1.0", 0.1), evaluation(folder / "b", "second-1.0", 0.0)


@pytest.fixture(scope="module")
def whole(two, tmp_path_factory):
    """A report of everything: its text and the folder of its figures."""
    folder = tmp_path_factory.mktemp("report")
    extra = folder / "tsne_gap.png"
    Image.new("RGB", (40, 30)).save(extra)
    text = written(
        [*two, log(folder / "run"), extra], folder / "report.html", figures=folder / "png"
    )
    return text, folder / "png"


def written(paths, output, **options):
    plain = {"title": "A report", "figures": None, "overwrite": False, "report": lambda f, t: None}
    return write_report(list(paths), output, **{**plain, **options}).read_text(encoding="utf-8")


def log(folder, steps=60):
    folder.mkdir()
    lines = [
        {
            "step": n + 1,
            "loss": 1 / (n + 1),
            "segmentation": 0.5 / (n + 1),
            "learning_rate": 0.01,
            "seconds": n,
        }
        | {f"preference/{m}": 0.1 * k for k, m in enumerate(BRATS.modality_names)}
        for n in range(steps)
    ]
    text = "\n".join(map(json.dumps, lines)) + '\n{"step": 61, "lo'
    (folder / "log.jsonl").write_text(text)
    return folder


def test_the_page_is_whole_and_needs_nothing_else(whole):
    text, figures = whole
    page = Reader(text)
    assert page.open == []
    assert "script" not in page.tags
    assert all(link.startswith(("data:image/png;base64,", "#s")) for link in page.links), (
        "nothing is fetched"
    )
    assert not re.search(r"https?://|url\(|@import", text)
    assert all(image["alt"] for image in page.images)
    for words in (
        "At a glance",
        "Modality subsets",
        "Paired comparison",
        "Worst cases",
        "Training",
        "tsne gap",
    ):
        assert words in page.text
    assert "made-up <scores> & cases" in page.text, "texts are escaped, not swallowed"
    assert NOTICE in page.text
    names = {p.stem for p in figures.iterdir()}
    assert {
        "table-first-1.0-val",
        "grid-second-1.0-val",
        "training-run",
        "modalities-run",
        "tsne_gap",
    } <= names
    assert any(name.startswith("forest-") for name in names)
    for path in figures.iterdir():
        Image.open(path).verify()
    assert len(page.images) >= 10


def test_the_tables_say_what_the_evaluation_says(two, whole):
    page = Reader(whole[0])
    summary = json.loads((two[0] / "evaluation.json").read_text())["summary"]
    for subset in ("t2", "t1+t1ce+t2+flair"):
        assert f"{summary['subsets'][subset]['WT']['mean']:.3f}" in page.text
    for group in ("3 missing (4 subsets)", "all subsets (15 subsets)", "without T1ce (7 subsets)"):
        assert f"mean, {group}" in page.text
    assert "WT: A is better by 0.1" in page.text
    assert "With so few cases" in page.text
    assert "ET: absent in the reference of 1 case;".replace("ET", "first-1.0, val, ET") in page.text


def test_runs_and_figures_of_one_name_do_not_replace_each_other(tmp_path):
    """Every bundle is called medmap-custom-1.0.0 unless its author says otherwise."""
    same = [evaluation(tmp_path / folder, "custom-1.0", 0.0, cases=3) for folder in "ab"]
    runs = []
    for parent in "cd":
        (tmp_path / parent).mkdir()
        runs.append(log(tmp_path / parent / "run"))
    page = Reader(written([*same, *runs], tmp_path / "r.html", figures=tmp_path / "png"))
    names = [path.stem for path in (tmp_path / "png").iterdir()]
    for kind in ("table", "missing", "grid", "training"):
        assert sum(name.startswith(f"{kind}-") for name in names) == 2, kind
    assert "custom-1.0, val (a)" in page.text
    assert "custom-1.0, val (b)" in page.text


def test_names_are_as_short_as_they_can_be():
    candidates = [("x", "x (a)"), ("x", "x (b)"), ("y", "y (a)"), ("z", "z"), ("z", "z")]
    assert distinct_names(candidates) == ["x (a)", "x (b)", "y", "z", "z (2)"]
    figures = Figures()
    for name in ("a b", "a/b", "A-b"):
        figures.keep(name, name.encode())
    assert sorted(figures.pictures.values()) == [b"A-b", b"a b", b"a/b"]
    assert len({name.lower() for name in figures.pictures}) == 3


def test_a_bundle_with_a_card_alone_gives_its_table(tiny_bundle_path, tmp_path):
    from medmap.bundle.loading import update_card

    entry = {"WT": {"mean": 0.9, "sd": 0.1, "n": 3}, "TC": {"mean": 0.8, "sd": 0.1, "n": 3}}
    old = {
        "data": "x",
        "cases": 3,
        "subsets": {"flair": {**entry, "ET": {"mean": 0.123, "sd": 0.1, "n": 3}}},
    }
    path = update_card(shutil.copytree(tiny_bundle_path, tmp_path / "bundle"), {"dice": old})
    assert "0.123" in Reader(written([path], tmp_path / "r.html")).text


def test_what_is_no_source_is_refused_and_nothing_is_written(two, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="empty"):
        written([two[0], tmp_path / "empty"], tmp_path / "r.html", figures=tmp_path / "png")
    assert not (tmp_path / "r.html").exists()
    assert not (tmp_path / "png").exists()
    (tmp_path / "r.html").write_text("mine")
    with pytest.raises(OutputError):
        written(two, tmp_path / "r.html")
    assert (tmp_path / "r.html").read_text() == "mine"


def test_curves_of_modalities_are_found_by_name(tmp_path):
    found = read_log(log(tmp_path / "run") / "log.jsonl", BRATS.modality_names)
    assert found.losses == ["loss", "segmentation"]
    assert found.modality_figures == {
        "preference": {m: f"preference/{m}" for m in BRATS.modality_names}
    }
    assert len(found.series["loss"][0]) == 60
    titles = {m.name: m.title for m in BRATS.modalities}
    for png in (training_curves(found), modality_curves(found, titles)):
        assert Image.open(io.BytesIO(png)).size[1] > 200
    assert _spans_decades([found.series["loss"][1]])
    assert not _spans_decades([np.array([2.4, 2.5])]), (
        "a logarithmic axis of half a decade is hard to read"
    )
    assert not _spans_decades([np.array([-1.0, 1.0])])
    (tmp_path / "bad.jsonl").write_text("nothing\n")
    with pytest.raises(InputDataError, match="no step"):
        read_log(tmp_path / "bad.jsonl", BRATS.modality_names)


def test_a_slice_shows_the_largest_area_and_survives_its_file(tmp_path, volumes):
    labels = np.zeros(volumes["t1"].array.shape, np.uint8)
    labels[10:14, 20:24, 10] = 2
    labels[8:20, 16:30, 21] = 1
    truth = Volume(labels, volumes["t1"].affine)
    kept = take_slice("C", volumes, truth, {"t1": labels * 2})
    assert set(np.unique(kept.reference)) == {0, 1}
    assert (kept.reference > 0).sum() == 12 * 14
    assert np.array_equal(kept.predictions["t1"], kept.reference * 2)
    assert all(scan.shape == kept.reference.shape for scan in kept.scans.values())
    # The patient's right is on the left of the picture: i grows to the right, so low i comes last.
    assert np.flatnonzero(kept.reference.any(0)).mean() > kept.reference.shape[1] / 2
    save_slice(tmp_path / "c.npz", kept)
    again = load_slice(tmp_path / "c.npz")
    assert np.array_equal(again.reference, kept.reference)
    assert again.title == kept.title
    (tmp_path / "c.npz").write_bytes(b"no archive")
    with pytest.raises(InputDataError, match=r"c\.npz"):
        load_slice(tmp_path / "c.npz")


def test_thick_slices_are_shown_in_the_plane_that_was_acquired(volumes):
    affine = np.diag([1.0, 6.0, 1.0, 1.0])
    thick = {name: Volume(v.array[:, ::6], affine) for name, v in volumes.items()}
    labels = np.zeros(thick["t1"].array.shape, np.uint8)
    labels[10:20, 4, 10:20] = 1
    assert take_slice("C", thick, Volume(labels, affine), {}).title.startswith("coronal")


def test_sources_are_told_apart(two, tiny_bundle_path, tmp_path):
    found = read_sources([two[0], tiny_bundle_path, log(tmp_path / "run")])
    assert (len(found.evaluations), len(found.bundles), len(found.logs)) == (1, 1, 1)


@pytest.mark.slow
def test_chromium_shows_the_page(whole, tmp_path):
    """A real browser lays the page out: all pictures are decoded, the screenshot is not empty."""
    browser = next(
        (
            b
            for name in ("chromium", "chromium-browser", "google-chrome")
            if (b := shutil.which(name))
        ),
        None,
    )
    if browser is None:
        pytest.skip("no Chromium: apt-get install chromium")
    (tmp_path / "report.html").write_text(whole[0], encoding="utf-8")
    command = [
        browser,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--window-size=1400,2600",
    ]
    shot = tmp_path / "shot.png"
    command += [
        f"--user-data-dir={tmp_path}/profile",
        f"--screenshot={shot}",
        (tmp_path / "report.html").as_uri(),
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    pixels = np.asarray(Image.open(shot).convert("RGB")).reshape(-1, 3)
    assert len(np.unique(pixels[::7], axis=0)) > 500
