"""The sections of the panel, from top to bottom. These files and the module file are the only ones that use Qt.

A new section is a file here, a line in ``SECTIONS`` and a box in ``Resources/UI/MedMAPSegment.ui``.
"""

from __future__ import annotations

from .checks import ChecksSection
from .expected_performance import CardSection
from .inputs import InputsSection
from .modality_comparison import WhatIfSection
from .models import ModelsSection
from .results import ResultsSection
from .review import ReviewSection
from .run import RunSection

SECTIONS = (
    ModelsSection,
    InputsSection,
    CardSection,
    ChecksSection,
    RunSection,
    ResultsSection,
    ReviewSection,
    WhatIfSection,
)
"""In the order in which they follow a change: the model decides on the inputs, these on what comes below."""
