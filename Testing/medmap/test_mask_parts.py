"""Connected parts of masks, looked for among cells of voxels."""

from __future__ import annotations

import numpy as np
import pytest

from medmap.mask_parts import CELL_MM, filling_of_cells, largest_parts


@pytest.mark.parametrize("counts", [(4, 4, 4), (1, 2, 3), (16, 16, 4)])
def test_cells_hold_the_share_of_their_voxels(counts):
    mask = np.random.default_rng(0).random((37, 33, 20)) < 0.4
    filling = filling_of_cells(mask, counts)
    for cell in np.ndindex(filling.shape):
        corner = tuple(slice(n * c, (n + 1) * c) for n, c in zip(cell, counts, strict=True))
        assert filling[cell] == np.float32(mask[corner].sum()) / np.float32(np.prod(counts))


def boxes_of(shape, *corners_and_sizes) -> np.ndarray:
    """A mask of boxes, each given by its first voxel and its size along every axis."""
    mask = np.zeros(shape, bool)
    for corner, size in corners_and_sizes:
        mask[tuple(slice(start, start + size) for start in corner)] = True
    return mask


def test_a_small_part_is_left_out_and_a_large_one_stays():
    whole = boxes_of((80, 60, 40), ((4, 4, 4), 32), ((60, 40, 20), 16), ((4, 50, 4), 4))
    parts = largest_parts(whole, (1.0, 1.0, 1.0))
    expected = boxes_of((80, 60, 40), ((4, 4, 4), 32), ((60, 40, 20), 16))
    np.testing.assert_array_equal(parts, expected)


def test_the_share_decides_what_is_small():
    mask = boxes_of((80, 60, 40), ((4, 4, 4), 32), ((60, 40, 20), 16))
    parts = largest_parts(mask, (1.0, 1.0, 1.0), least_share=0.2)
    np.testing.assert_array_equal(parts, boxes_of(mask.shape, ((4, 4, 4), 32)))


def test_cells_have_millimeters_not_voxels():
    """A gap of six voxels divides parts at 1 mm, and not at half a millimeter."""
    mask = boxes_of((64, 24, 24), ((4, 4, 4), 16), ((28, 4, 4), 16), ((50, 4, 4), 4))
    at_1_mm = largest_parts(mask, (1.0, 1.0, 1.0))
    assert not at_1_mm[50:].any()
    at_half = largest_parts(mask, (CELL_MM / 8,) * 3)
    assert at_half[50:54, 4:8, 4:8].all()


def test_a_mask_without_a_filled_cell_stays_as_it_is():
    mask = boxes_of((40, 40, 40), ((8, 8, 8), 1))
    np.testing.assert_array_equal(largest_parts(mask, (1.0, 1.0, 1.0)), mask)


def test_no_voxel_is_added():
    mask = np.random.default_rng(1).random((50, 40, 30)) < 0.3
    assert not (largest_parts(mask, (1.0, 1.0, 1.5)) & ~mask).any()
