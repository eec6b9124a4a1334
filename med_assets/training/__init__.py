"""The training process: a job folder in, weights and a result out. Imports no Dagster and no Great Expectations."""
