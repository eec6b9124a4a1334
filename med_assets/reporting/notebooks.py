"""Notebooks that are written by a program and executed before anybody opens them.

All notebooks of a process share one kernel, since starting it and importing pandas takes longer than a notebook. It is emptied
between two of them, so that none sees what another left.
"""

import atexit
import json
import shutil
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from med_assets.errors import MedAssetsError
from med_assets.settings import without_secrets
from med_assets.storage.files import write_text

CELL_TIMEOUT_S = 120
"""Longest time a cell may take, s; those that are written here take a tenth of a second."""

_one_at_a_time = threading.Lock()


@dataclass(frozen=True)
class Cell:
    """One cell: Markdown for people, or code that is executed."""

    text: str
    code: bool = False


def write_notebook(path: Path, cells: Sequence[Cell], private: Sequence[str] = ()) -> None:
    """Execute cells in the folder of `path` and write them with their outputs, atomically, as nbformat 4.

    Raises MedAssetsError when a cell fails, or when one of the `private` texts (the path of the home) would be in the file.
    """
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    made = nbformat.v4.new_notebook(
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    )
    for number, cell in enumerate(cells, start=1):
        new = nbformat.v4.new_code_cell if cell.code else nbformat.v4.new_markdown_cell
        # Ids are random unless given, and equal content should give an equal file.
        made.cells.append(new(cell.text, id=f"cell-{number:02d}"))
    path.parent.mkdir(parents=True, exist_ok=True)
    with _one_at_a_time:
        kernel = _kernel()
        kernel.enter(path.parent)
        client = NotebookClient(made, km=kernel.manager, timeout=CELL_TIMEOUT_S, record_timing=False)
        client.kc = kernel.client
        try:
            client.execute(reset_kc=False)
        except CellExecutionError as error:
            raise MedAssetsError(f"{path.name}: a cell failed with {error.ename}: {error.evalue}") from None
        except (CellTimeoutError, DeadKernelError) as error:
            kernel.stop()
            raise MedAssetsError(f"{path.name}: its kernel stopped ({type(error).__name__})") from None
    executed = (cell for cell in made.cells if cell.cell_type == "code")
    for count, cell in enumerate(executed, start=1):
        cell.execution_count = count
        for output in cell.outputs:
            if "execution_count" in output:
                output.execution_count = count
    nbformat.validate(made)
    text = nbformat.writes(made)
    if any(one and (one in text or json.dumps(one, ensure_ascii=False)[1:-1] in text) for one in private):
        raise MedAssetsError(f"{path.name}: expected a notebook without paths of this machine, got one with some")
    write_text(path, text + "\n")


class _Kernel:
    """The kernel of this process: without secrets, without history on disk, reached by sockets in a folder of its own."""

    def __init__(self) -> None:
        from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
        from jupyter_client.manager import KernelManager

        words = ["-m", "ipykernel_launcher", "-f", "{connection_file}", "--HistoryManager.enabled=False"]
        spec = KernelSpec(argv=[sys.executable, *words], display_name="Python 3", language="python")

        class OwnPython(KernelSpecManager):
            """This environment's Python, whatever kernels the user has installed."""

            def get_kernel_spec(self, kernel_name: str) -> Any:
                return spec

        self._folder = Path(tempfile.mkdtemp(prefix="kernel-"))
        self.manager = KernelManager(
            kernel_spec_manager=OwnPython(), transport="ipc", connection_file=str(self._folder / "kernel.json")
        )
        environment = without_secrets() | {"IPYTHONDIR": str(self._folder / "ipython")}
        self.manager.start_kernel(env=environment)
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=60)
        atexit.register(self.stop)

    def enter(self, folder: Path) -> None:
        """Work in a folder, and forget everything. The folder comes first: that of the notebook before may be gone."""
        code = f"import os\nos.chdir({str(folder)!r})\nget_ipython().reset(new_session=False)"
        self.client.execute_interactive(code, silent=True, store_history=False, timeout=CELL_TIMEOUT_S)

    def stop(self) -> None:
        """End the kernel; the next notebook starts another."""
        _kernel.cache_clear()
        atexit.unregister(self.stop)
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)
        self.manager.cleanup_resources()
        shutil.rmtree(self._folder, ignore_errors=True)


@cache
def _kernel() -> _Kernel:
    return _Kernel()


def stop_kernel() -> None:
    """End the kernel of this process, if one was started."""
    if _kernel.cache_info().currsize:
        _kernel().stop()
