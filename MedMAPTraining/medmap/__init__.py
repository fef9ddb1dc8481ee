"""MedMAP: brain-tumor segmentation from whatever MRI a patient has. Research use only.

Importing the package imports nothing heavy: not torch, not MONAI, not nibabel. Import the module that you need.
"""

__version__ = "0.1.0"

NOTICE = (
    "MedMAP is research software. It is not a medical device and is not approved for clinical use."
)
