"""Text that came from outside, shown as it is: in Markdown, in Dagster's descriptions, in spreadsheets and in a terminal.

HTML needs nothing here: the templates of reports escape all they are given.
"""

import io
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    import pandas as pd

MARKDOWN = re.compile(r"[\\`*\[\]|$~]")
"""Characters that make formatting, links, formulas or columns in Markdown; an underscore within a word does not."""

CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")
"""What moves a cursor, colours, turns the direction of writing, hides, or can't be written; not a tab or the end of a line."""

FORMULA = re.compile(r"[\s]*[=+\-@]")
"""Start of a cell that a spreadsheet computes, unless it is a number."""

NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*")


def visible(text: str) -> str:
    r"""Text in which control characters are written out, as `\x1b`."""
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def inline(text: Any) -> str:
    """Text within a line of Markdown that shows as it is: no markup, no HTML, no link, no new line."""
    words = visible(" ".join(str(text).split())).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return MARKDOWN.sub(lambda found: f"\\{found[0]}", words)


def code(text: Any) -> str:
    """Text as code within a line or a cell of a table of Markdown."""
    return f"`{visible(' '.join(str(text).split())).replace('`', chr(39)).replace('|', chr(92) + '|')}`"


def fenced(text: str, language: str = "") -> str:
    """Text as a block of code, whose fence is longer than any in the text."""
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", text))])
    return f"{fence}{language}\n{visible(text)}\n{fence}"


def inert(text: str) -> str:
    """Text that reads the same as plain text and as Markdown: angle brackets that open no tag, brackets that make no link."""
    return re.sub(r"\](?=[(\[:])", "] ", visible(text).replace("<", "‹").replace(">", "›"))


def spreadsheet_cell(value: Any) -> Any:
    """A value that no spreadsheet computes: text that looks like a formula gets an apostrophe before it."""
    if not isinstance(value, str):
        return value
    text = visible(value)
    return f"'{text}" if FORMULA.match(text) and not NUMBER.fullmatch(text) else text


def csv(table: "pd.DataFrame") -> str:
    """A table as CSV without its index, for spreadsheets; names of columns may come from outside too."""
    import pandas as pd

    shown = table.copy()
    for place, dtype in enumerate(shown.dtypes):
        if not pd.api.types.is_numeric_dtype(dtype):
            shown.isetitem(place, shown.iloc[:, place].map(spreadsheet_cell).array)
    return str(shown.to_csv(index=False, header=[str(spreadsheet_cell(str(name))) for name in shown.columns]))


def markdown(table: "pd.DataFrame") -> str:
    """A table as Markdown; all but code, in backticks, shows as it is."""
    lines = [
        list(map(_table_cell, table.columns)),
        ["---"] * len(table.columns),
        *(map(_table_cell, row) for row in table.to_numpy()),
    ]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines) if len(table) else "none\n"


def _table_cell(value: Any) -> str:
    text = str(value)
    return code(text[1:-1]) if len(text) > 1 and text[0] == text[-1] == "`" else inline(text)


class VisibleText(io.TextIOBase):
    """A stream that writes control characters out, and what the stream below it can't encode."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    @property
    def encoding(self) -> str:  # type: ignore[override]  # an attribute in the stubs; io's own streams have a property too
        return self.stream.encoding or "utf-8"

    def write(self, text: str) -> int:
        shown = visible(text)
        self.stream.write(shown.encode(self.encoding, "backslashreplace").decode(self.encoding))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:  # type: ignore[override]  # IOBase takes bytes, a text stream text
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        self.stream.flush()

    def isatty(self) -> bool:
        return self.stream.isatty()

    def fileno(self) -> int:
        return self.stream.fileno()

    def writable(self) -> bool:
        return True
