"""The note of a step that one process leaves and another one reads."""

import os
import threading
import time

import pytest

from med_assets.intake.steps import NoteFile, Step, ending


def test_the_last_note_is_read_by_another_process_and_wakes_nobody() -> None:
    ours = NoteFile.new()
    assert ours.read() is None
    before = time.monotonic()
    if (child := os.fork()) == 0:
        theirs = NoteFile(ours.descriptor)
        theirs.write(Step("file a", 3.0))
        theirs.write(Step("case \udcff", 5.5))
        os._exit(0)
    os.waitpid(child, 0)
    note = ours.read()
    assert note is not None
    assert note.step == Step("case \udcff", 5.5)
    assert before <= note.began_s <= time.monotonic()
    ours.clear()
    assert ours.read() is None
    ours.close()
    ours.close()


def test_a_step_has_its_whole_time_from_when_it_began_or_from_when_it_is_waited_for() -> None:
    notes = NoteFile.new()
    notes.write(Step("file a", 100.0))
    note = notes.read()
    assert note is not None
    assert 99 < note.left_s(0.0) <= 100
    assert 109 < note.left_s(time.monotonic() + 10) <= 110
    notes.close()


def test_a_note_that_is_overwritten_while_it_is_read_is_read_whole() -> None:
    notes, seen = NoteFile.new(), set()
    other, done = NoteFile(os.dup(notes.descriptor)), threading.Event()

    def write() -> None:
        for number in range(3000):
            other.write(Step(f"{number % 10}" * (1 + 400 * (number % 10)), float(number)))
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not done.is_set():
        if (note := notes.read()) is not None:
            seen.add(note.step)
    writer.join()
    assert all(set(step.key) == {f"{int(step.limit_s) % 10}"} for step in seen)
    assert all(len(step.key) == 1 + 400 * (int(step.limit_s) % 10) for step in seen)
    notes.close()
    other.close()


@pytest.mark.parametrize(
    "content",
    [
        b"\xff" * 40,
        b"\x01" + bytes(7) + b"\x04" + bytes(7) + b"[1, 2]" + b"\x01" + bytes(7),
        bytes(3),
        b"\x01" * 200_000,
    ],
)
def test_what_is_no_note_is_none(content: bytes) -> None:
    """A process that something in a file took over may write anything."""
    notes = NoteFile.new()
    os.pwrite(notes.descriptor, content, 0)
    assert notes.read() is None
    notes.close()


def test_the_message_says_how_a_step_ended_and_names_no_file() -> None:
    step = Step("file /landing/SMITH^JOHN.dcm", 30.0)
    late, killed, left = (ending(step, status, 2.0) for status in (None, -6, 3))
    assert "within 30 s" in late
    assert "SIGABRT" in killed
    assert "exit status 3" in left
    assert all("this file" in text and "SMITH" not in text for text in (late, killed, left))
