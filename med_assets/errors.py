"""The exception tree, whole, in one place.

MedAssetsError
├── CaseRejected          one case (or file) can't be used; it is quarantined and the batch goes on
│   └── ArchiveRejected   a zip or tar that is not safe to unpack
├── ConfigurationError    a setting, experiment or program name that can't be used as given
├── CheckpointMismatch    weights that do not fit the network they were asked for
├── ArtifactCorrupt       stored bytes that no longer match their recorded hash
├── ArtifactMissing       an artifact that a table names and the store does not hold
├── Conflict              a partition of a table that another wrote since it was read, or a lock that was lost
├── LaunchFailed          a launcher could not start a training or a stage, or it ended without a result
├── StageFailed           a stage that ran elsewhere ended with an error that is none of these; its log says more
├── LandingUnreadable     the landing folder, or an entry in it, can't be read now; nothing of it is taken or lost
├── ReaderFailed          the process that reads files of the landing zone does not start
├── RemoteFailed          an S3 endpoint or the server of a download does not do what it was asked, after all retries
├── LockHeld              a lock that was not to be waited for is held by another process
├── LockLost              a lock that this process held went to another machine; nothing was overwritten
├── DiskFull              no space to write; what was there before is whole
├── ScoringFailed         no case of an evaluation could be scored
├── BelowReference        the initial weights of a training score below their reference
├── TrainingDiverged      the loss of a training is no number any more; the message names the batch that gave it
├── TrainingStopped       training was asked to stop and saved what it had; the same command goes on
├── AcceleratorFailed     the accelerator or its driver failed; a new process may go on
└── OutOfMemory           training ran out of memory, with what was tried

Messages say what was expected, what came and what to do, and never carry names, ids or file names of patients.
"""


class MedAssetsError(Exception):
    """Root of all errors that med_assets raises on purpose."""


class CaseRejected(MedAssetsError):
    """A case or file can't be used. `code` is a short token to count by, `message` is for a person to act on.

    `picture` are the bytes of a PNG that shows what is wrong, where a picture says it best; nothing in it identifies anyone.
    """

    def __init__(self, code: str, message: str, picture: bytes | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.picture = picture

    def __reduce__(self) -> tuple[type["CaseRejected"], tuple[str, str, bytes | None]]:
        return type(self), (self.code, self.message, self.picture)


class ArchiveRejected(CaseRejected):
    """An archive that would write outside its folder, hold links or devices, or unpack beyond the limits."""


class ConfigurationError(MedAssetsError):
    """A setting, program or experiment that can't be used as given."""


class CheckpointMismatch(MedAssetsError):
    """Weights whose tensors do not match the network; nothing was loaded."""


class ArtifactCorrupt(MedAssetsError):
    """Stored bytes do not match the hash recorded when they were written."""


class ArtifactMissing(MedAssetsError):
    """An artifact that was recorded is not in the store; a backup has it, or the step that makes it."""


class Conflict(MedAssetsError):
    """What a write rests on was changed by another since it was read; nothing of it was written, and it can be tried anew."""


class LaunchFailed(MedAssetsError):
    """A launcher does not answer or could not start a training, or the training ended without a result."""


class StageFailed(MedAssetsError):
    """A stage ended in another process with an error of a library; the message has its type and the places in the code."""


class LandingUnreadable(MedAssetsError):
    """The landing folder, or an entry in it, can't be read now; it is taken in when it can."""


class NoTruth(MedAssetsError):
    """What needs a label was asked of a case that came without one and is to be predicted."""


class ReaderFailed(MedAssetsError):
    """The process that reads files of the landing zone does not start, whatever the file; nothing is lost."""


class RemoteFailed(MedAssetsError):
    """An S3 endpoint or the server of a download does not do what it was asked, after all retries; nothing is lost, the same command goes on."""


class LockHeld(MedAssetsError):
    """Another process holds the lock, and this one was not to wait; the message has who and since when."""


class LockLost(MedAssetsError):
    """This process was paused, or without the network, for so long that another took its lock over; what it was about to write was not written."""


class DiskFull(MedAssetsError):
    """There is no space on the disk; nothing that was there is damaged."""


class ScoringFailed(MedAssetsError):
    """Not one case of an evaluation could be scored; the message has the first failure."""


class BelowReference(MedAssetsError):
    """The initial weights of a training score below their reference; nothing was trained."""


class TrainingDiverged(MedAssetsError):
    """The loss of a training is NaN or infinite; the message names step and cases of the batch. Nothing is published."""


class TrainingStopped(MedAssetsError):
    """Training was asked to stop and did at a step's end; started again it goes on from what it saved."""


class AcceleratorFailed(MedAssetsError):
    """The accelerator or its driver failed; a new process may go on from the last checkpoint."""


class OutOfMemory(MedAssetsError):
    """Training ran out of memory; the message names batch and patch size and what to change."""
