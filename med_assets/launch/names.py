"""The launchers that a setting can name; their configuration, which settings do without, is in `configuration`."""

LAUNCHERS = {
    "local": "med_assets.launch.local:LocalLauncher",
    "slurm": "med_assets.launch.slurm:SlurmLauncher",
    "kubernetes": "med_assets.launch.kubernetes:KubernetesLauncher",
}
"""Launchers by name: module and class. A class is imported when it is first needed."""

IN_PROCESS = "in_process"
"""In place of a launcher: a stage runs in the process that asks for it."""
