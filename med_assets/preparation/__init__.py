"""From de-identified DICOM to arrays and measured facts, and their audit."""
