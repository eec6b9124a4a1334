"""DICOM over the network: what receives, fetches and sends objects, and who the peers are."""
