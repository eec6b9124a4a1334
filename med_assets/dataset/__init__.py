"""The dataset's manifest, the splits of its patients, and findings between cases."""
