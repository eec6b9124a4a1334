"""docs/cli.md, written from the command line itself: `python -m med_assets.cli.reference docs/cli.md`."""

import sys
from inspect import cleandoc
from pathlib import Path

import click

from med_assets.cli.command_line import SECTIONS, cli

HEADER = """# The command line

Written by `make docs` from the commands themselves; a test fails when the two differ.
Each command does what the asset of the same name does in the graph, with the same code and the same store.

`eval "$(_MED_ASSETS_COMPLETE=bash_source med-assets)"` in `~/.bashrc` completes commands, options and programs (`zsh_source` and
`fish_source` do in those shells).
"""


def reference() -> str:
    """Markdown with a chapter per section and a table per command."""
    top = click.Context(cli, info_name="med-assets", **cli.context_settings)
    parts = [HEADER]
    for section in SECTIONS:
        parts.append(f"## {section.name}\n")
        for name, command in section.commands.items():
            parts.append(f"### `med-assets {name}`\n\n{cleandoc(command.help or '')}\n")
            context = click.Context(command, top, name)
            records = [param.get_help_record(context) for param in command.params]
            rows = [f"| `{names.replace('|', chr(92) + '|')}` | {text} |" for names, text in filter(None, records)]
            if rows:
                parts.append("\n".join(["| argument | meaning |", "|---|---|", *rows]) + "\n")
    return "\n".join(parts)


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(reference())
