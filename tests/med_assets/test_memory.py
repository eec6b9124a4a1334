"""Free memory is that of the machine, and what the control groups of the process leave."""

import gc
from pathlib import Path

import pytest

from med_assets.storage import memory
from med_assets.storage.memory import free_host

MIB = 2**20


def test_a_control_group_limits_what_is_free_and_files_that_it_holds_count_as_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit, used = tmp_path / "memory.max", tmp_path / "memory.current"
    used.write_text(f"{300 * MIB}\n")
    monkeypatch.setattr(memory, "_groups", lambda: [(limit, used)])
    limit.write_text("max\n")
    assert free_host() > 100 * MIB
    limit.write_text(f"{400 * MIB}\n")
    assert free_host() == 100 * MIB
    (tmp_path / "memory.stat").write_text(f"anon {MIB}\ninactive_file {50 * MIB}\n")
    assert free_host() == 150 * MIB


def failing_block() -> None:
    with memory.without_collecting():
        with memory.without_collecting():
            assert not gc.isenabled()
        assert not gc.isenabled(), "the outer block has not ended"
        raise ZeroDivisionError


def test_garbage_is_looked_for_again_after_a_block_that_asked_for_none_also_where_it_failed() -> None:
    assert gc.isenabled()
    with pytest.raises(ZeroDivisionError):
        failing_block()
    assert gc.isenabled()
