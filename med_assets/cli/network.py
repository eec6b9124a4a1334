"""Commands that speak DICOM with other nodes: receive."""

from med_assets.cli.commands import Section

SECTION = Section("DICOM over the network")


@SECTION.command()
def receive() -> None:
    """Receive DICOM objects from other nodes into the landing zone, until Ctrl-C.

    `network.yaml` in the home, or the file that MED_ASSETS_NETWORK names, has address, AE titles with their programs, the nodes that
    may send, and TLS. An instance is on the disk before it is acknowledged; a study becomes an entry of the landing zone when the
    association that sent it ends, or when nothing more came of it. C-ECHO and storage commitment are answered too.
    """
    from med_assets.network.receiver import receive as run
    from med_assets.settings import Settings

    run(Settings.from_env())
