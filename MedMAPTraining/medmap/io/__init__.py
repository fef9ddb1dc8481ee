"""Files: atomic writes, NIfTI, BIDS and the layouts of cohorts."""
