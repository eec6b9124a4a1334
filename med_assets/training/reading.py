"""Opening a file of weights, whatever lies under its name: tensors come out, or a refusal that says what it is instead.

Torch files (zip archives and the pickles before them) are read with `weights_only=True` and a closed list of classes, and
safetensors by their own reader, so that no code of a file ever runs. What a file is, its first bytes decide, not its name.
"""

import pickle
import pickletools
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from med_assets.errors import CheckpointMismatch
from med_assets.training.omegaconf_values import safe_classes

HEAD_BYTES = 512
"""First bytes of a file, by which its kind is known."""

LARGEST_HEADER = 100_000_000
"""Bytes of the longest header that the safetensors format allows."""

SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "a git-lfs pointer, not the file itself: run `git lfs pull`, or download the file by its link"),
    (b"\x89HDF", "an HDF5 file, as Keras writes it"),
    (b"\x1f\x8b", "a gzip archive: unpack it"),
    (b"BZh", "a bzip2 archive: unpack it"),
    (b"\xfd7zXZ", "an xz archive: unpack it"),
    (b"7z\xbc\xaf", "a 7z archive: unpack it"),
    (b"%PDF", "a PDF"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"GGUF", "a GGUF file, as llama.cpp writes it"),
)  # fmt: skip
"""First bytes of files that are not of weights as they are read here."""

SHOWN = 5
"""Names of a file that a message shows."""

PICKLES = 4
"""Pickles at the start of a legacy torch file: magic number, protocol, system, and the content."""

OWN = ("torch.", "collections.", "numpy.", "omegaconf.", "builtins.", "typing.")
"""First parts of names that a file of tensors and configurations asks for."""

ADVICE = "get the file again from its source, and compare its size with the one stated there"


def numpy_classes() -> list[Any]:
    """Return NumPy's classes of scalars and arrays, which trainers leave among the tensors; none of them runs code."""
    import numpy as np
    from numpy._core import multiarray

    kinds = [type(np.dtype(name)) for name in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?")]
    made = (multiarray.scalar, multiarray._reconstruct)
    # Files of NumPy 1 name the module without its underscore.
    return [np.dtype, np.ndarray, *kinds, *made, *((one, f"numpy.core.multiarray.{one.__name__}") for one in made)]


def open_weights(path: Path, whose: str = "the file") -> Any:
    """Return the content of a file of weights on the CPU: a torch file, new or legacy, or the tensors of a safetensors file.

    Raises CheckpointMismatch, which says what was expected, what the file is and what to do, for everything else; whatever the
    file is, none of its code runs.
    """
    try:
        return _opened(path)
    except CheckpointMismatch as error:
        raise CheckpointMismatch(f"{whose}: {error}") from error


def _opened(path: Path) -> Any:
    if path.is_dir():
        raise _refused("a folder: put the file of weights itself there, or the joined file of a model in pieces")
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            head = stream.read(HEAD_BYTES)
    except OSError as error:
        raise _refused(
            f"a file that can't be read ({error.strerror}): put it there, readable for this account"
        ) from error
    if not head:
        raise _refused(f"an empty file: {ADVICE}")
    return _reader(head, size)(path)


def _reader(head: bytes, size: int) -> Callable[[Path], Any]:
    """The function that reads a file with such first bytes. Raises CheckpointMismatch where there is none."""
    for signature, text in SIGNATURES:
        if head.startswith(signature):
            raise _refused(text if ":" in text else f"{text}: {ADVICE}")
    header = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and 2 <= header <= LARGEST_HEADER:
        if size < 8 + header:
            raise _refused(f"the start of a safetensors file, {size} bytes: {ADVICE}")
        return _safetensors
    if head.startswith(b"PK\x03\x04"):
        return _torch_zip
    if head.startswith(b"\x80"):
        return _torch
    first = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if first.startswith((b"<!doctype", b"<html", b"<?xml", b"<")):
        raise _refused(
            f"a web page or a server's message in HTML or XML, such as a licence to accept or an expired link: {ADVICE}"
        )
    if first.startswith((b"{", b"[")):
        raise _refused(
            "a JSON text, such as a configuration, an error of a server or the index of a model in pieces: put the weights there, pieces "
            "joined to one file"
        )
    if not head.strip(b"\0"):
        raise _refused(f"a file of zeros, as an interrupted download leaves it: {ADVICE}")
    raise _refused(f"a file of another kind, with the first bytes {head[:8].hex(' ')}: {ADVICE}")


def _refused(what: str) -> CheckpointMismatch:
    return CheckpointMismatch(f"expected a file of weights (a state dict by torch.save, or safetensors), got {what}")


def _safetensors(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, ValueError, KeyError, OSError, RuntimeError) as error:
        raise _refused(f"a safetensors file that is not whole or damaged ({type(error).__name__}): {ADVICE}") from error


def _torch_zip(path: Path) -> Any:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise _refused(f"a zip or torch file that is not whole: {ADVICE}") from error
    if any(name.endswith("/constants.pkl") or "/code/" in name for name in names):
        raise _refused("a TorchScript program: get the state dict instead, a program's code is not run here")
    if any(name.endswith(".npy") for name in names):
        raise _refused(f"an archive of NumPy arrays: {ADVICE}")
    if not any(name.count("/") == 1 and name.endswith("/data.pkl") for name in names):
        raise _refused(f"a plain zip archive of {len(names)} files: unpack it, and put the file of weights there")
    return _torch(path)


def _torch(path: Path) -> Any:
    import torch

    allowed = [*safe_classes(), *numpy_classes()]
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(allowed):
            # Files of old versions of torch and NumPy are read with warnings that are about their age alone.
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _foreign(path, error) from error
    except Exception as error:  # the reader of a hostile or damaged file fails with whatever its bytes lead to
        raise _refused(f"a torch file that is damaged or not whole ({type(error).__name__}): {ADVICE}") from error


def _foreign(path: Path, error: pickle.UnpicklingError) -> CheckpointMismatch:
    """The refusal of a pickle with other things than tensors and plain values, or one that is damaged."""
    classes = sorted(_unsafe(path))
    shown = ", ".join(classes[:SHOWN])
    if any(name.startswith("torch.nn.modules.") for name in classes):
        return _refused(
            f"a whole pickled module ({shown}): ask who made it for its state dict, saved by torch.save(module.state_dict(), file); "
            "opening this one would run its code"
        )
    if classes:
        return _refused(
            f"a pickle with objects of {shown}: ask who made it for the state dict alone; opening this one could run its code"
        )
    return _refused(
        f"a pickle that is damaged, not whole or of other things than tensors ({type(error).__name__}): {ADVICE}"
    )


def _unsafe(path: Path) -> set[str]:
    """Names of the classes and functions that a file asks for and that are not on the closed list; nothing of it is run."""
    import torch

    if zipfile.is_zipfile(path):
        try:
            with torch.serialization.safe_globals([*safe_classes(), *numpy_classes()]):
                return set(torch.serialization.get_unsafe_globals_in_checkpoint(path))
        except Exception:  # damaged within: what it asks for can't be listed, and the refusal says damaged
            return set()
    return _names_in_pickles(path)


def _names_in_pickles(path: Path) -> set[str]:
    """The same of a legacy file, which is some pickles one after the other, read as a list of instructions."""
    found: set[str] = set()
    strings: list[str] = []
    try:
        with path.open("rb") as stream:
            for _ in range(PICKLES):
                for code, argument, _ in pickletools.genops(stream):
                    if code.name == "GLOBAL":
                        found.add(str(argument).replace(" ", "."))
                    elif code.name == "STACK_GLOBAL" and len(strings) > 1:
                        found.add(".".join(strings[-2:]))
                    if isinstance(argument, str):
                        strings.append(argument)
    except Exception:  # the end of the pickles, or of what is whole
        pass
    return {name for name in found if not name.startswith(OWN) or name.startswith("torch.nn.modules.")}
