"""From DICOM objects of patients to objects that identify nobody, and the check that none is left."""
