"""The command line: everything that the graph does can be done, and debugged, without Dagster.

What holds for every command is here: signals, exit codes, output and errors. The libraries of the commands take a second or
more to import, so they are imported when a signal already ends the process with one line.
"""

import argparse
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TextIO

from med_assets.errors import MedAssetsError
from med_assets.reporting.escaping import VisibleText

FAILED, MISUSED, INTERRUPTED, TERMINATED = 1, 2, 130, 143
"""Exit codes: what was asked for did not work; the command line itself was not understood; Ctrl-C (SIGINT); SIGTERM."""

EXIT_CODES = {signal.SIGINT: INTERRUPTED, signal.SIGTERM: TERMINATED}
"""Signals that end a command, and the exit codes by which a shell knows them."""

Handler = Callable[[int, FrameType | None], None]


class Interrupted(KeyboardInterrupt):
    """A signal that ends the command; whatever is done on Ctrl-C is done on it. `code` is the exit code."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.code = EXIT_CODES[signal.Signals(number)]


def _end_at_once(number: int, frame: FrameType | None) -> NoReturn:
    """End the process: while libraries are imported, where an exception can be lost, and at a second signal."""
    os.write(2, b"med-assets: interrupted; the same command goes on\n")
    os._exit(EXIT_CODES[signal.Signals(number)])


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise Interrupted(number)


def _handle(handler: Handler) -> dict[int, Any]:
    """Let a handler have the signals that end a command, those aside that whoever started it wants ignored; returns those before."""
    if threading.current_thread() is not threading.main_thread():  # where Python allows none
        return {}
    kept = [number for number in EXIT_CODES if signal.getsignal(number) is not signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in kept}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    before = _handle(_end_at_once)
    try:
        from med_assets.cli.arguments import parser
        from med_assets.storage.files import keep_private

        keep_private()
        with redirect_stdout(VisibleText(sys.stdout)), redirect_stderr(VisibleText(sys.stderr)):
            options = parser().parse_args(arguments)
            return _run(options)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run(options: argparse.Namespace) -> int:
    # Libraries tell in hundreds of lines what they do, pymedphys under no name of its own; only ours are for people.
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("med_assets").setLevel(logging.DEBUG if options.debug else logging.INFO)
    try:
        _handle(_interrupt)
        from med_assets.storage.scratch import remove_abandoned

        remove_abandoned(Path(os.environ.get("MED_ASSETS_HOME", ".med_assets")))
        code = int(options.run(options) or 0)
        sys.stdout.flush()  # not at exit, where a closed pipe could no longer be caught
        return code
    except MedAssetsError as error:
        return _failed(options, error, str(error))
    except BrokenPipeError:  # who read our output has gone, such as `head`
        _into_nothing(sys.stdout)
        return FAILED
    except OSError as error:
        return _failed(
            options,
            error,
            f"{os.strerror(error.errno or 0)} ({type(error).__name__}); is the home writable, and the disk whole?",
        )
    except KeyboardInterrupt as error:
        _handle(_end_at_once)
        print(
            f"med-assets {options.command}: interrupted; what was written is whole, and the same command goes on",
            file=sys.stderr,
        )
        return getattr(error, "code", INTERRUPTED)
    except Exception as error:
        return _failed(
            options, error, f"failed with {type(error).__name__}; `med-assets --debug` shows where in the code"
        )


def _into_nothing(stream: TextIO) -> None:
    """Let what is still to be written to a stream whose reader has gone be written nowhere."""
    with suppress(OSError, ValueError):  # ValueError: a stream without a file
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _failed(options: argparse.Namespace, error: Exception, message: str) -> int:
    """Say what failed, with --debug also where; no value of a foreign error is shown, since it may be a patient's."""
    if options.debug:
        for link in _chain(error):
            print(f"{type(link).__name__} at", file=sys.stderr)
            for frame in traceback.extract_tb(link.__traceback__):
                print(f"  {frame.filename}:{frame.lineno} {frame.name}", file=sys.stderr)
    print(f"med-assets {options.command}: {message}", file=sys.stderr)
    return FAILED


def _chain(error: BaseException | None) -> list[BaseException]:
    """An error and what it was raised from, the first one first."""
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.insert(0, error)
        error = error.__cause__ or error.__context__
    return found


if __name__ == "__main__":
    sys.exit(main())
