"""What a result of a study is in DICOM: labels, regions, and measurements."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from highdicom.seg import Segmentation as SegmentationObject

from medmap.diameters import region_diameters
from medmap.dicom import quiet_libraries
from medmap.dicom.measurement_report import measurement_report
from medmap.dicom.segmentation_object import labels_object, regions_object
from medmap.dicom.series import Series
from medmap.inference import Segmentation
from medmap.task import Task


class ResultObjects:
    """The DICOM objects of one result, which refer to each other.

    Args:
        chosen: series by modality name.
        task: names, codes, and regions of the labels.
        bundle: id of the bundle.
    """

    def __init__(self, chosen: Mapping[str, Series], task: Task, bundle: str) -> None:
        self._chosen = chosen
        self._task = task
        self._bundle = bundle
        self._segmentation: Segmentation | None = None

    @quiet_libraries()
    def write_labels(self, path: Path, segmentation: Segmentation) -> None:
        """Write the labels as a segmentation object."""
        labels = labels_object(
            segmentation.labels, self._task, self._series(segmentation), self._bundle
        )
        labels.save_as(path)

    @quiet_libraries()
    def write_regions(self, path: Path, segmentation: Segmentation) -> None:
        """Write the regions, to which the measurements refer, as a segmentation object."""
        self._segmentation = segmentation
        self._regions.save_as(path)

    @quiet_libraries()
    def write_report(self, path: Path, segmentation: Segmentation) -> None:
        """Write volumes and diameters of the regions as a structured report."""
        self._segmentation = segmentation
        diameters = region_diameters(segmentation.labels, self._task, segmentation.grid)
        report = measurement_report(
            self._regions,
            segmentation.volumes_ml,
            diameters,
            self._task,
            self._series(segmentation),
            self._bundle,
        )
        report.save_as(path)

    @cached_property
    def _regions(self) -> SegmentationObject:
        assert self._segmentation is not None
        series = self._series(self._segmentation)
        labels = self._segmentation.labels
        return regions_object(labels, self._task, series, self._bundle)

    def _series(self, segmentation: Segmentation) -> Series:
        return self._chosen[segmentation.reference]
