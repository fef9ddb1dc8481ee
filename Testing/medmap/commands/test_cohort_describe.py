"""``medmap cohort describe``: counts, rates and intensities, and nothing that names a patient."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from medmap.commands.cohort_description import DescribeOptions, describe, read_sites
from medmap.errors import InputDataError
from medmap.io.nifti import write_volume
from medmap.progress import ignore_progress, never_cancel
from medmap.report.upset import upset_plot
from medmap.task import BRATS
from medmap.training.missingness import build_missingness

SUBSETS = [("t1ce", "flair")] * 4 + [("t1", "t1ce", "t2", "flair")] * 3 + [("flair",)]


@pytest.fixture
def cohort(tmp_path, make_case):
    """Eight patients of two sites; the scanner of site B writes ten times larger numbers."""
    folder = tmp_path / "cohort"
    lines = ["case;site"]
    for number, names in enumerate(SUBSETS):
        case = f"Patient_Miller_{number}"
        site = "A" if number < 4 else "B"
        lines.append(f"{case};{site}")
        (folder / case).mkdir(parents=True)
        volumes = make_case((20, 22, 18), seed=number)
        for name in names:
            array = volumes[name].array * (10 if site == "B" else 1)
            path = folder / case / f"{case}_{name}.nii.gz"
            write_volume(path, array.astype(np.int16), volumes[name].affine)
    (tmp_path / "sites.csv").write_text("\n".join(lines))
    return folder


def run(cohort, **options):
    settings = DescribeOptions(sites=cohort.parent / "sites.csv", **options)
    return describe(cohort, BRATS, settings, ignore_progress, never_cancel)


def test_it_counts_subsets_and_sites(cohort):
    found = run(cohort, with_intensities=False)
    assert found.subsets == {"t1ce+flair": 4, "t1+t1ce+t2+flair": 3, "flair": 1}
    assert found.sites == {"A": 4, "B": 4}
    assert found.available["B"] == {"t1": 3, "t1ce": 3, "t2": 3, "flair": 4}
    assert found.missing_rates == {"t1": 0.625, "t1ce": 0.125, "t2": 0.625, "flair": 0.0}
    assert found.intensities == {}


def test_its_missing_rates_are_those_of_a_recipe(cohort):
    recipe = run(cohort, with_intensities=False).missingness
    names = [f"case {number}" for number in range(80)]
    protocol = build_missingness(recipe["missingness"], BRATS, recipe["missingness_options"], names)
    masks = np.array([protocol.available(name) for name in names])
    np.testing.assert_allclose(1 - masks.mean(0), [0.625, 0.125, 0.625, 0.0])


def test_sites_differ_in_intensity_and_small_ones_are_left_out(cohort):
    found = run(cohort)
    ratio = found.intensities["B"]["flair"].percentiles[1]
    ratio /= found.intensities["A"]["flair"].percentiles[1]
    assert 8 < ratio < 12
    assert found.intensities["B"]["t1"].cases == 3
    assert "t1" not in found.intensities["A"]
    assert found.intensities["A"]["flair"].spacing_mm == (2.0, 2.0, 2.0)


def test_no_patient_and_no_path_is_named(cohort, tmp_path):
    run(cohort, output=tmp_path / "out")
    text = (tmp_path / "out/cohort.json").read_text()
    arguments = ["cohort", "describe", cohort, "--sites", cohort.parent / "sites.csv"]
    printed = subprocess.run(
        [sys.executable, "-m", "medmap", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        check=True,
    )
    for words in (text, printed.stdout, printed.stderr):
        assert "Miller" not in words
        assert str(tmp_path) not in words
    assert '"missingness": "fixed"' in printed.stdout
    assert json.loads(text)["subsets"]["flair"] == 1


def test_the_plot_has_a_column_for_each_subset():
    sizes = []
    for count in (2, 6):
        subsets = {BRATS.subset_key(s): n + 1 for n, s in enumerate(BRATS.subsets()[:count])}
        sizes.append(Image.open(io.BytesIO(upset_plot(subsets, BRATS))).width)
    assert sizes[1] > sizes[0]


def test_a_case_without_a_site_is_refused(cohort, tmp_path):
    table = cohort.parent / "sites.csv"
    table.write_text("\n".join(table.read_text().splitlines()[:-1]))
    with pytest.raises(InputDataError, match="1 of 8 cases"):
        run(cohort)
    table.write_text("case,hospital\nx,y\n")
    with pytest.raises(InputDataError, match="case and site"):
        read_sites(table)
