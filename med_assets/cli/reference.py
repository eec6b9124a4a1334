"""docs/cli.md, written from the command line itself: `python -m med_assets.cli.reference docs/cli.md`."""

import argparse
import sys
from pathlib import Path

from med_assets.cli.arguments import parser

HEADER = """# The command line

Written by `make docs` from the commands themselves; a test fails when the two differ.
Each command does what the asset of the same name does in the graph, with the same code and the same store.
"""


def subcommands(top: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Parser of each command by name, in the order of `--help`."""
    for action in top._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def _usage_name(action: argparse.Action) -> str:
    if action.option_strings:
        value = "" if action.nargs == 0 else f" {action.metavar or '|'.join(action.choices or ())}"
        return ", ".join(action.option_strings) + value
    return str(action.metavar or "|".join(action.choices or (action.dest,)))


def reference() -> str:
    """Markdown with a section per command. The same on every Python version, unlike argparse's own help."""
    parts = [HEADER]
    for name, command in subcommands(parser()).items():
        rows = [action for action in command._actions if "--help" not in action.option_strings]
        parts.append(f"## `med-assets {name}`\n\n{command.description}\n")
        if rows:
            lines = [f"| `{_usage_name(action).replace('|', chr(92) + '|')}` | {action.help} |" for action in rows]
            parts.append("\n".join(["| argument | meaning |", "|---|---|", *lines]) + "\n")
    return "\n".join(parts)


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(reference())
