"""What nvidia-smi says of the GPUs, asked so that a driver that hangs holds nobody up."""

import subprocess
from contextlib import suppress

from med_assets.errors import MedAssetsError

WAIT_S = 10.0
"""Longest wait for nvidia-smi, s: it does not return when the driver hangs."""


class NoAnswer(MedAssetsError):
    """There is no nvidia-smi, or it does not start or answer."""


def ask(program: str | None, fields: str, *, header: bool) -> list[str]:
    """Return the lines of `nvidia-smi --query-gpu=FIELDS` as CSV, one for each GPU, units left out unless with a `header`. Raises NoAnswer."""
    if program is None:
        raise NoAnswer("there is no nvidia-smi")
    command = [program, f"--query-gpu={fields}", "--format=csv" if header else "--format=csv,noheader,nounits"]
    try:
        asked = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    except OSError as error:
        raise NoAnswer(f"nvidia-smi does not start ({error.strerror})") from error
    try:
        text, _ = asked.communicate(timeout=WAIT_S)
    except subprocess.TimeoutExpired as error:
        asked.kill()
        if asked.stdout is not None:
            asked.stdout.close()
        # Not waited for any longer: a process that waits for the driver can't be killed before that answers.
        with suppress(subprocess.TimeoutExpired):
            asked.wait(1.0)
        raise NoAnswer(f"nvidia-smi did not answer within {WAIT_S:g} s, as when the driver hangs") from error
    return text.decode(errors="replace").splitlines()
