"""Synthetic cases as real DICOM files, marked as such in the data, for the demo and the tests."""
