"""What is special to each clinical program, and nothing else."""
