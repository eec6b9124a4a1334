"""What is expected of the measured facts of cases, and which cases do not meet it."""
