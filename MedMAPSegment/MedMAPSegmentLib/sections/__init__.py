"""The sections of the panel. These files and the module file are the only ones that use Qt.

A new section is a file here, a line in ``SECTIONS`` and widgets in
``Resources/UI/MedMAPSegment.ui``.
"""

from __future__ import annotations

from .checks import ChecksSection
from .expected_performance import ExpectedPerformanceSection
from .follow_up import FollowUpSection
from .hand_over import HandOverSection
from .inputs import InputsSection
from .models import ModelsSection
from .preparation import PreparationSection
from .reference_parts import ReferencePartsSection
from .results import ResultsSection
from .review import ReviewSection
from .run import RunSection
from .settings import SettingsSection
from .subset_comparison import SubsetComparisonSection

SECTIONS = (
    ModelsSection,
    InputsSection,
    ExpectedPerformanceSection,
    ChecksSection,
    SettingsSection,
    PreparationSection,
    RunSection,
    ResultsSection,
    HandOverSection,
    ReferencePartsSection,
    ReviewSection,
    SubsetComparisonSection,
    FollowUpSection,
)
"""In the order in which they follow a change: the model decides on the inputs, these on all else.
"""
