#!/bin/bash
# Prolog of a node, as root: each account has a folder of its own in the scratch, which others can't read.
# A prolog that fails drains its node, so nothing here does.
umask 077
scratch=/scratch/med-assets-$SLURM_JOB_UID
mkdir -p "$scratch" && chown "$SLURM_JOB_UID:$SLURM_JOB_GID" "$scratch"
exit 0
