"""Keep patient data out of logs and the event log where raw files are touched.

Messages of unexpected errors (a path in an OSError, a value in a pydicom error) and library warnings can carry names of
patients. Under `phi_safe` only the type of an unexpected error and the places in the code leave; the errors of
med_assets are written to be safe and pass with their message.
"""

from collections.abc import Callable
from typing import TypeVar

import dagster as dg

from med_assets.errors import MedAssetsError
from med_assets.storage.phi_safe import outline, silence

T = TypeVar("T")


def phi_safe(work: Callable[[], T]) -> T:
    """Do some work; libraries that quote values are silent, and no message of an unexpected error gets out.

    A function and not a context manager, since an error raised while another is being handled would carry that one
    along, message and all. Raises dagster.Failure.
    """
    try:
        with silence():
            return work()
    except (dg.Failure, dg.RetryRequested):
        raise
    except MedAssetsError as error:
        message = f"{type(error).__name__}: {error}"
    except Exception as error:
        message = (
            f"{outline(error)}; its message is withheld since it may identify a patient. "
            "Run the same step with `med-assets` on this machine to read it"
        )
    raise dg.Failure(message, allow_retries=False)
