"""Exit statuses of `python -m med_assets.training`. Whoever starts a training decides by them; imports nothing."""

DONE = 0
"""`result.json` is there, and what it is of: `weights.pt`, or predictions."""

FAILED = 1
"""The job can't be run as given, or training raised an error; the log says which. Starting it again changes nothing."""

OUT_OF_MEMORY = 3
"""Memory ran out; `result.json` says what was tried, what was free, and what to change."""

ACCELERATOR = 4
"""The accelerator or its driver failed, more often than `runtime.restarts` allows."""

HUNG = 5
"""No step ended for `runtime.hang_after_s`, more often than `runtime.restarts` allows; the log has the stacks."""

REQUEUE = 75
"""Requeue me: the training was asked to stop (SIGTERM) and saved what it had; the same command goes on (EX_TEMPFAIL)."""

SIGNALLED = 128
"""Plus n: the training was ended by signal n, more often than `runtime.restarts` allows."""
