"""Detection of the MRI modality of a series from names and DICOM attributes. No torch in here."""
