"""What a released file of weights is, and what a network computes with it: what `med-assets weights` prints."""

from collections.abc import Sequence
from pathlib import Path

from med_assets.errors import ConfigurationError
from med_assets.training.reading import open_weights


def tokens(file: Path, text: str) -> list[int]:
    """Return the tokens of a text by a `tokenizer.json`, without those that begin and end it: `network.prompt` of a SAM3 experiment.

    Raises ConfigurationError for a file that is no tokenizer.
    """
    from tokenizers import Tokenizer

    try:
        found: list[int] = Tokenizer.from_file(str(file)).encode(text, add_special_tokens=False).ids
    except Exception as error:  # its own exception is of no class
        raise ConfigurationError(
            "expected the tokenizer.json of the text encoder (CLIP's, beside the released weights), got a file that is none"
        ) from error
    return found


def describe(file: Path, chosen: tuple[str, str] | None, overrides: Sequence[str]) -> None:
    """Print the tensors and SHA-256 of a file, and how the experiment that takes it, or the chosen one, fits.

    Raises ConfigurationError and CheckpointMismatch.
    """
    from med_assets.experiments.configuration import load
    from med_assets.storage.files import file_sha256
    from med_assets.training import released

    content = open_weights(file)
    names = released.names_of(content)
    print(f"tensors: {len(names)}, SHA-256 {file_sha256(file)}")
    print(released.described(content))
    family = released.family_of(content)
    usual = None if family is None else (family.program, family.experiment)
    program_and_experiment = chosen or usual
    if program_and_experiment is None:
        return
    program, experiment = program_and_experiment
    asked = family.given if family is not None and program_and_experiment == usual else ()
    on = released.trial(program, load(program, experiment, [*asked, *overrides]))
    taken = released.take(on, content)
    print(f"{program}/{experiment}: {taken.matched} of the network's {taken.tensors} tensors are taken from the file")
    print(f"preprocessing: {taken.check}")
    print(f"digest of the output for a ramp from 0 to 1 (shape: mean, deviation, first, middle, last): {taken.digest}")
