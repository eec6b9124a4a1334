"""Numbers with their definitions: dose-volume statistics, gamma, dose errors, agreement of masks and intervals.

Every function here works on plain arrays and knows nothing of programs, files or Dagster. What is undefined is None,
never 0.0.
"""
