"""The whole command line, and what a person reads who used it wrongly; docs/cli.md is written from it."""

import logging

import click

from med_assets import __version__
from med_assets.cli import bundles, cases, data, network, operations, results, running, store
from med_assets.cli.commands import perhaps
from med_assets.storage import logs
from med_assets.storage.names import escaped

SECTIONS = (
    data.SECTION,
    network.SECTION,
    bundles.SECTION,
    results.SECTION,
    running.SECTION,
    cases.SECTION,
    store.SECTION,
    operations.SECTION,
)


class CommandLine(click.Group):
    """The commands of all sections under their headings."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return super().get_command(ctx, cmd_name) or store.EARLIER_NAMES.get(cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for section in SECTIONS:
            with formatter.section(section.name or ""):
                formatter.write_dl([(name, each.get_short_help_str(300)) for name, each in section.commands.items()])


@click.group(
    "med-assets",
    cls=CommandLine,
    commands={name: command for section in SECTIONS for name, command in section.commands.items()},
    no_args_is_help=False,
    subcommand_metavar="COMMAND ...",
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
)
@click.version_option(__version__, message="%(version)s")
@click.option("--debug", is_flag=True, help="Log every step, and show where in the code an error arose.")
def cli(debug: bool) -> None:
    """From raw DICOM to evaluated, promoted models. Settings come from MED_ASSETS_* variables, see docs/settings.md."""
    # Libraries tell in hundreds of lines what they do, pymedphys under no name of its own; only ours are for people.
    logs.configure(logging.DEBUG if debug else logging.INFO)
    context = click.get_current_context()
    context.with_resource(logs.about(command=context.invoked_subcommand or ""))


def misuse(error: click.UsageError, command: str) -> str:
    """One line, in ASCII, about words that make no command: what was expected, what came, and what to do."""
    match error:
        case click.NoSuchCommand(command_name=name):
            text = f"expected a command, got {escaped(name)}{perhaps(name, cli.commands)}"
        case click.NoSuchOption(option_name=name, possibilities=near):
            text = f"expected an option of the command, got {escaped(name)}{f'; perhaps {near[0]} is meant' if near else ''}"
        case click.MissingParameter(param=click.Parameter() as param, ctx=click.Context() as ctx):
            text = f"expected {(param.get_help_record(ctx) or [param.name])[0]}, got nothing"
        case click.BadParameter(param=click.Option(opts=[*_, option])):
            text = f"{option}: {error.message}"
        case click.BadOptionUsage(option_name=name):
            text = (
                f"expected {name} {'with a value, got none' if 'requires' in error.message else 'alone, got a value'}"
            )
        case click.BadParameter() | click.BadArgumentUsage():
            text = error.message
        case _:
            text = "expected a command, got none"
    return f"{command}: {text}; see `{command} --help`"
