"""Launchers: what starts the command of a job folder, finds it again, follows it to its end, and cancels it. No Dagster in it."""
