"""Distances between surfaces whose elements count by area, as DeepMind's measures define them.

Source: Nikolov et al., "Clinically Applicable Segmentation of Head and Neck Anatomy for
Radiotherapy", JMIR 2021 (arXiv:1809.04430). BraTS 2023 and later take HD95 and the normalized
surface distance (NSD) in this form; ``medmap.metrics.hd95`` counts surface voxels instead, as
MONAI and earlier BraTS evaluations do. Both are in mm and differ by a fraction of a voxel.

A surface element is a cube between eight voxel centers of which some are inside the mask and some
are not. Its area is that of the marching-cubes surface within it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np

from medmap.boxes import bounding_box

_CORNERS = tuple(product((0, 1), repeat=3))
"""Corners of a cube; the position in this list is the bit in its code."""

Point = tuple[float, ...]
Triangle = tuple[Point, Point, Point]


@dataclass(frozen=True)
class SurfaceDistances:
    """Distances between the surfaces of a prediction and a reference.

    Attributes:
        to_reference_mm: [N] from each element of the prediction's surface, ascending; inf where the
            reference has no surface.
        prediction_mm2: [N] areas of these elements.
        to_prediction_mm: [M] from each element of the reference's surface, ascending.
        reference_mm2: [M] areas of these elements.
    """

    to_reference_mm: np.ndarray
    prediction_mm2: np.ndarray
    to_prediction_mm: np.ndarray
    reference_mm2: np.ndarray


def surface_distances(
    prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float]
) -> SurfaceDistances:
    """Measure two [I, J, K] boolean masks on one grid; ``spacing`` [3] in mm."""
    from scipy.spatial import cKDTree

    box = bounding_box(prediction | reference)
    if box is None:
        empty = np.zeros(0)
        return SurfaceDistances(empty, empty, empty, empty)
    points, areas = _elements(prediction[box], spacing)
    other_points, other_areas = _elements(reference[box], spacing)
    # A tree without points answers inf, which is what a missing surface means.
    distances = cKDTree(other_points).query(points)[0]
    other_distances = cKDTree(points).query(other_points)[0]
    order = np.lexsort((areas, distances))
    other_order = np.lexsort((other_areas, other_distances))
    return SurfaceDistances(
        to_reference_mm=distances[order],
        prediction_mm2=areas[order],
        to_prediction_mm=other_distances[other_order],
        reference_mm2=other_areas[other_order],
    )


def area_weighted_hd95(distances: SurfaceDistances) -> float:
    """The larger of both directed 95th percentiles by area, in mm; 0 without any surface.

    inf where one of the masks is empty.
    """
    directed = (
        (distances.to_reference_mm, distances.prediction_mm2),
        (distances.to_prediction_mm, distances.reference_mm2),
    )
    if not any(len(values) for values, _ in directed):
        return 0.0
    return max(_percentile_by_area(values, areas, 0.95) for values, areas in directed)


def _percentile_by_area(values: np.ndarray, areas: np.ndarray, fraction: float) -> float:
    """The first of the ascending values up to which that fraction of the area lies."""
    if not len(values):
        return float("inf")
    total = areas.sum()
    cumulative = np.cumsum(areas) / total
    position = int(np.searchsorted(cumulative, fraction))
    # Rounding may leave the last sum below 1.
    position = min(position, len(values) - 1)
    return float(values[position])


def normalized_surface_distance(distances: SurfaceDistances, tolerance_mm: float) -> float:
    """Share of both surfaces' area that lies within the tolerance of the other surface, 0..1.

    1 where both masks are empty, 0 where one is.
    """
    # Both areas: a surface that is missing on one side counts there, too.
    total = distances.prediction_mm2.sum() + distances.reference_mm2.sum()
    if total == 0:
        return 1.0
    is_near_reference = distances.to_reference_mm <= tolerance_mm
    is_near_prediction = distances.to_prediction_mm <= tolerance_mm
    within = distances.prediction_mm2[is_near_reference].sum()
    within += distances.reference_mm2[is_near_prediction].sum()
    return float(within / total)


def _elements(mask: np.ndarray, spacing: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Positions [N, 3] in mm and areas [N] in mm² of the surface elements of a mask."""
    codes = _codes_of_cells(mask)
    # Cells with all corners outside, or all inside, hold no surface.
    has_surface = (codes != 0) & (codes != 255)
    positions = np.argwhere(has_surface)
    codes_of_elements = codes[tuple(positions.T)]
    area_of_code = surface_areas(tuple(map(float, spacing)))
    positions_mm = positions * np.asarray(spacing, float)
    return positions_mm, area_of_code[codes_of_elements]


def _codes_of_cells(mask: np.ndarray) -> np.ndarray:
    """uint8 code of each cell between eight neighboring voxels: a bit for each of them."""
    # A rim of background: masks that touch the edge of the array end there.
    padded = np.pad(mask, 1)
    cells = [size - 1 for size in padded.shape]
    codes = np.zeros(cells, np.uint8)
    for bit, corner in enumerate(_CORNERS):
        window = []
        for start, size in zip(corner, codes.shape, strict=True):
            window.append(slice(start, start + size))
        is_inside = padded[tuple(window)].astype(np.uint8)
        codes |= is_inside << bit
    return codes


@lru_cache(maxsize=16)
def surface_areas(spacing: tuple[float, ...]) -> np.ndarray:
    """[256] area in mm² of the marching-cubes surface within a cube, by the code of its corners."""
    areas = np.zeros(256)
    for code, triangles in enumerate(_triangles_of_codes()):
        areas[code] = sum(_area(triangle, spacing) for triangle in triangles)
    return areas


@lru_cache(maxsize=1)
def _triangles_of_codes() -> tuple[tuple[Triangle, ...], ...]:
    """The surface within a cube by the code of its corners, vertices at the middles of edges.

    The less frequent corners are cut off from each other, and a polygon is divided into the
    triangles of the largest area. This gives the areas of DeepMind's table (tested for equality
    against MONAI's copy of it).
    """
    triangles = []
    for code in range(256):
        inside = {corner: bool(code >> bit & 1) for bit, corner in enumerate(_CORNERS)}
        # The surface is the same from the other side.
        inside_count = sum(inside.values())
        if inside_count > len(_CORNERS) // 2:
            inside = {corner: not value for corner, value in inside.items()}
        surface: list[Triangle] = []
        polygons = _polygons(inside)
        for polygon in polygons:
            ways = _triangulations(polygon)
            largest = max(ways, key=_unit_area)
            surface.extend(largest)
        triangles.append(tuple(surface))
    return tuple(triangles)


def _polygons(inside: dict[tuple[int, ...], bool]) -> list[list[Point]]:
    """Closed polygons of the surface, from its lines on the six faces."""
    neighbors: dict[Point, list[Point]] = {}
    for axis, side in product(range(3), (0, 1)):
        for first, second in _lines_on_face(inside, axis, side):
            neighbors.setdefault(first, []).append(second)
            neighbors.setdefault(second, []).append(first)
    polygons = []
    remaining = set(neighbors)
    while remaining:
        # Always the same start: sets have no order, and areas must not depend on one.
        polygon = [min(remaining)]
        while True:
            remaining.discard(polygon[-1])
            following = [point for point in neighbors[polygon[-1]] if point in remaining]
            if not following:
                break
            polygon.append(following[0])
        polygons.append(polygon)
    return polygons


def _lines_on_face(
    inside: dict[tuple[int, ...], bool], axis: int, side: int
) -> list[tuple[Point, Point]]:
    """Lines on one face of the cube, from middle of edge to middle of edge."""
    square = []
    # Around the face, so that neighbors in the list share an edge.
    for pair in ((0, 0), (1, 0), (1, 1), (0, 1)):
        square.append((*pair[:axis], side, *pair[axis:]))
    middles = []
    crossed = []
    for number, corner in enumerate(square):
        following = square[(number + 1) % 4]
        ends = zip(corner, following, strict=True)
        middle = tuple((a + b) / 2 for a, b in ends)
        middles.append(middle)
        if inside[corner] != inside[following]:
            crossed.append(number)
    if len(crossed) == 2:
        first, second = crossed
        return [(middles[first], middles[second])]
    lines = []
    if len(crossed) == 4:
        # Two opposite corners are inside: each of them is cut off by itself.
        for number, corner in enumerate(square):
            if inside[corner]:
                lines.append((middles[number - 1], middles[number]))
    return lines


def _triangulations(polygon: Sequence[Point]) -> list[list[Triangle]]:
    """Every way to divide a polygon into triangles between its corners."""
    if len(polygon) < 3:
        return [[]]
    ways = []
    for apex in range(1, len(polygon) - 1):
        # The triangle on the last side leaves a smaller polygon on either side of it.
        triangle = (polygon[0], polygon[apex], polygon[-1])
        before = _triangulations(polygon[: apex + 1])
        behind = _triangulations(polygon[apex:])
        # Every division of the one goes with every division of the other.
        for first, second in product(before, behind):
            ways.append([triangle, *first, *second])
    return ways


def _unit_area(triangles: list[Triangle]) -> float:
    # Rounded: of triangulations that are equal by symmetry, the first is taken on every machine.
    return round(sum(_area(triangle, (1.0, 1.0, 1.0)) for triangle in triangles), 9)


def _area(triangle: Triangle, spacing: Sequence[float]) -> float:
    """Area in mm²: half the length of the cross product of two sides."""
    corners_mm = np.array(triangle) * np.asarray(spacing, float)
    a, b, c = corners_mm
    normal = np.cross(b - a, c - a)
    return float(np.linalg.norm(normal)) / 2
