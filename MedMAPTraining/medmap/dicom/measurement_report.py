"""Structured reports of measurements (DICOM PS3.16, TID 1500): volumes and diameters of regions."""

from __future__ import annotations

from collections.abc import Mapping

import highdicom
from highdicom.sr import (
    AlgorithmIdentification,
    ComprehensiveSR,
    DeviceObserverIdentifyingAttributes,
    FindingSite,
    Measurement,
    MeasurementReport,
    ObservationContext,
    ObserverContext,
    ReferencedSegment,
    TrackingIdentifier,
    VolumetricROIMeasurementsAndQualitativeEvaluations,
)
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from medmap import __version__
from medmap.diameters import Diameters
from medmap.dicom.codes import (
    BRAIN,
    CATEGORY,
    CUBIC_CENTIMETER,
    DIAMETER_3D,
    LONG_AXIS,
    MILLIMETER,
    MR_OF_BRAIN,
    VOLUME,
    type_of_region,
)
from medmap.dicom.segmentation_object import MANUFACTURER, MODEL_NAME, tracking_uid
from medmap.dicom.series import Series
from medmap.dicom.sources import source_datasets, stable_uid
from medmap.task import Task

SERIES_NUMBER = 9103


def measurement_report(
    regions: highdicom.seg.Segmentation,
    volumes_ml: Mapping[str, float],
    diameters: Mapping[str, Diameters],
    task: Task,
    series: Series,
    bundle: str,
) -> ComprehensiveSR:
    """Volumes in ml and longest diameters in mm of each region, referring to its segment.

    Args:
        regions: the object that ``regions_object`` made of the same result.
        volumes_ml, diameters: by region.
        task: whose regions they are.
        series: the reference series.
        bundle: id of the bundle.
    """
    groups = []
    for number, region in enumerate(task.regions, 1):
        measurements = [
            _measurement(VOLUME, volumes_ml[region.name], CUBIC_CENTIMETER),
            _measurement(LONG_AXIS, diameters[region.name].axial_mm, MILLIMETER),
            _measurement(DIAMETER_3D, diameters[region.name].longest_mm, MILLIMETER),
        ]
        tracking = TrackingIdentifier(
            uid=tracking_uid(series, bundle, region.name), identifier=region.title
        )
        group = VolumetricROIMeasurementsAndQualitativeEvaluations(
            tracking_identifier=tracking,
            referenced_segment=ReferencedSegment.from_segmentation(regions, number),
            finding_type=type_of_region(region, task),
            finding_category=CATEGORY,
            finding_sites=[FindingSite(BRAIN)],
            algorithm_id=AlgorithmIdentification(MODEL_NAME, f"{__version__} {bundle}"),
            measurements=measurements,
        )
        groups.append(group)
    observer = _observer(bundle)
    content = MeasurementReport(
        observation_context=ObservationContext(observer_device_context=observer),
        procedure_reported=MR_OF_BRAIN,
        imaging_measurements=groups,
        title=codes.DCM.ImagingMeasurementReport,
    )
    return ComprehensiveSR(
        evidence=[regions, *source_datasets(series)],
        content=content,
        series_instance_uid=stable_uid(series.header.series_uid, bundle, "report"),
        series_number=SERIES_NUMBER,
        sop_instance_uid=stable_uid(str(regions.SOPInstanceUID), "report"),
        instance_number=1,
        manufacturer=MANUFACTURER,
        # No one has verified it, and it is not to be read as if someone had.
        is_complete=True,
        is_final=False,
        is_verified=False,
        series_description="MedMAP measurements",
    )


def _observer(bundle: str) -> ObserverContext:
    """Who observed: a device, the model, whose serial number is the bundle's id."""
    return ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=DeviceObserverIdentifyingAttributes(
            uid=stable_uid(MODEL_NAME, bundle),
            name=MODEL_NAME,
            manufacturer_name=MANUFACTURER,
            model_name=MODEL_NAME,
            serial_number=bundle,
        ),
    )


def _measurement(name: Code, value: float, unit: Code) -> Measurement:
    return Measurement(name=name, value=round(float(value), 3), unit=unit)
