"""Public data sets in layouts of their own, turned into the DICOM that intake reads."""
