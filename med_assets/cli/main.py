"""The command line: everything that the graph does can be done, and debugged, without Dagster.

What holds for every command is here: signals, exit codes, output and errors. The libraries of the commands take a second or
more to import, so they are imported when a signal already ends the process with one line.
"""

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

from med_assets.errors import MedAssetsError
from med_assets.storage import logs
from med_assets.storage.escaping import VisibleText
from med_assets.storage.scratch import remove_abandoned

if TYPE_CHECKING:
    import click

FAILED, MISUSED, INTERRUPTED, TERMINATED = 1, 2, 130, 143
"""Exit codes: what was asked for did not work; the command line itself was not understood; Ctrl-C (SIGINT); SIGTERM."""

EXIT_CODES = {signal.SIGINT: INTERRUPTED, signal.SIGTERM: TERMINATED}
"""Signals that end a command, and the exit codes by which a shell knows them."""

COMPLETION = "_MED_ASSETS_COMPLETE"
"""Environment variable by which a shell asks for completion; its name is click's."""

IMPORTING = "<frozen importlib._bootstrap>"
"""File name of the frames that every import runs in."""

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
    """Raise Interrupted; within an import, where an exception can be lost, end the process."""
    while frame is not None:
        if frame.f_code.co_filename == IMPORTING:
            _end_at_once(number, frame)
        frame = frame.f_back
    raise Interrupted(number)


def _handle(handler: Handler) -> dict[int, Any]:
    """Let a handler have the signals that end a command, those aside that whoever started it wants ignored; returns those before."""
    if threading.current_thread() is not threading.main_thread():  # where Python allows none
        return {}
    kept = [number for number in EXIT_CODES if signal.getsignal(number) is not signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in kept}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. Raises SystemExit with MISUSED for words that make no command."""
    before = _handle(_end_at_once)
    try:
        from med_assets.cli.command_line import cli

        if os.environ.get(COMPLETION):
            cli.main(prog_name="med-assets")
        with redirect_stdout(VisibleText(sys.stdout)), redirect_stderr(VisibleText(sys.stderr)):
            return _run(sys.argv[1:] if arguments is None else list(arguments))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _prepare() -> None:
    """Make the process ready for a command: a signal raises from now on, so that what was begun is tidied up."""
    from med_assets.storage.files import keep_private

    keep_private()
    _handle(_interrupt)
    remove_abandoned(Path(os.environ.get("MED_ASSETS_HOME", ".med_assets")))


def _run(arguments: list[str]) -> int:
    import click

    from med_assets.cli.command_line import cli, misuse

    top: click.Context | None = None
    try:
        top = cli.make_context("med-assets", arguments, obj=_prepare)
        with top:  # so that what the log is about holds until the end
            code = int(cli.invoke(top) or 0)
        sys.stdout.flush()  # not at exit, where a closed pipe could no longer be caught
        return code
    except click.exceptions.Exit as end:  # after --help and --version
        return end.exit_code
    except click.UsageError as error:
        print(misuse(error, _command(top)), file=sys.stderr)
        raise SystemExit(MISUSED) from None
    except MedAssetsError as error:
        return _failed(top, error, str(error))
    except BrokenPipeError:  # who read our output has gone, such as `head`
        _into_nothing(sys.stdout)
        return FAILED
    except OSError as error:
        name = f"{os.strerror(error.errno or 0)} ({type(error).__name__})"
        return _failed(top, error, f"{name}; is the home writable, and the disk whole?")
    except KeyboardInterrupt as error:
        _handle(_end_at_once)
        text = "interrupted; what was written is whole, and the same command goes on"
        _complain(top, text)
        return getattr(error, "code", INTERRUPTED)
    except Exception as error:
        return _failed(top, error, f"failed with {type(error).__name__}; `med-assets --debug` shows where in the code")


def _command(top: "click.Context | None") -> str:
    """What runs, as a person calls it."""
    return f"med-assets {top.invoked_subcommand}" if top and top.invoked_subcommand else "med-assets"


def _into_nothing(stream: TextIO) -> None:
    """Let what is still to be written to a stream whose reader has gone be written nowhere."""
    with suppress(OSError, ValueError):  # ValueError: a stream without a file
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _failed(top: "click.Context | None", error: Exception, message: str) -> int:
    """Say what failed, with --debug also where; no value of a foreign error is shown, since it may be a patient's."""
    if top and top.params["debug"]:
        for link in _chain(error):
            print(f"{type(link).__name__} at", file=sys.stderr)
            for frame in traceback.extract_tb(link.__traceback__):
                print(f"  {frame.filename}:{frame.lineno} {frame.name}", file=sys.stderr)
    _complain(top, message)
    return FAILED


def _complain(top: "click.Context | None", message: str) -> None:
    """Say why a command fails, in the form of the log."""
    command = top.invoked_subcommand if top else None
    with logs.about(**({"command": command} if command else {})):
        logs.complain(f"{_command(top)}: {message}")


def _chain(error: BaseException | None) -> list[BaseException]:
    """An error and what it was raised from, the first one first."""
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.insert(0, error)
        error = error.__cause__ or error.__context__
    return found


if __name__ == "__main__":
    sys.exit(main())
