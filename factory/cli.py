"""``svf``, the terminal: the group of commands, and how errors end it."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.metadata import version
from keyword import iskeyword

import click
from click.exceptions import NoArgsIsHelpError
from rich.console import Console

from factory.errors import FactoryError
from factory.extras import missing_extra

INTERRUPTED = 130
ERROR = "[red]error:[/red]"

# Command -> the module of factory/commands that has it, loaded when the command is used.
COMMANDS = {
    "init": "init",
    "generate": "generate",
    "estimate": "estimate",
    "enqueue": "runs",
    "watch": "runs",
    "status": "runs",
    "resume": "runs",
    "cancel": "runs",
    "styles": "styles",
    "show": "vectors",
    "steer": "steer",
    "serve": "serve",
    "evaluate": "evaluate",
    "certify": "certify",
    "benchmark": "benchmark",
    "report": "report",
    "export": "vectors",
    "push": "hub",
    "pull": "hub",
    "import": "hub",
    "download": "setup",
    "config": "setup",
    "doctor": "cluster",
    "metrics": "cluster",
}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        function = f"{cmd_name}_" if iskeyword(cmd_name) else cmd_name
        command: click.Command = getattr(import_module(f"factory.commands.{COMMANDS[cmd_name]}"), function)
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(version("steering-vector-factory"), prog_name="svf")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.pass_context
def svf(ctx: click.Context, debug: bool) -> None:
    """Make steering vectors: frozen language models reason in a chosen style.

    'svf generate' does all of it on this machine. With a broker, 'svf enqueue' submits a run to
    workers started by 'celery -A factory worker -Q teacher|gpu|reduce'.
    """
    ctx.obj = debug


def main() -> None:
    """Run ``svf``; errors become one message and an exit status (0, 1, 2, 3 or 130)."""
    debug = "--debug" in sys.argv
    if debug:  # accepted before and after the command
        sys.argv = [sys.argv[0], *(word for word in sys.argv[1:] if word != "--debug")]
    try:
        sys.exit(svf.main(standalone_mode=False) or 0)
    except NoArgsIsHelpError as error:
        click.echo(error.format_message())
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort) as stop:
        told = str(stop.__cause__ or stop)  # click raises Abort from what a command says of its end
        _say("[yellow]interrupted[/yellow]:", told or "what is done is kept; the same command goes on from there")
        sys.exit(INTERRUPTED)
    except click.ClickException as error:
        _say(ERROR, error.format_message())
        sys.exit(2)
    except FactoryError as error:
        if debug:
            raise
        _say(ERROR, str(error))
        sys.exit(error.exit_status)
    except Exception as error:  # a person gets one line, also for what nobody foresaw
        known = missing_extra(error.name) if isinstance(error, ModuleNotFoundError) else None
        if debug:
            raise
        words = " ".join(str(error).split())[:300]
        _say(ERROR, str(known) if known else f"unexpected {type(error).__name__}: {words}. 'svf --debug' shows where")
        sys.exit(known.exit_status if known else 1)


def _say(kind: str, message: str) -> None:
    """Print one message on the error stream; brackets in it are text, not markup."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(kind, end=" ")
    console.print(message, markup=False)
