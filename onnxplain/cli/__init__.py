"""The command line: thin commands over Explainer. One line and an exit code for every error, never a traceback."""

from __future__ import annotations

import importlib
import logging
import sys
import warnings

import click

from onnxplain import __version__
from onnxplain.errors import OnnxplainError

COMMANDS = {  # name -> the attribute of its module; imported when it is asked for, since each needs something else
    "run": "run:run",
    "explain": "explain:explain",
    "compile": "compile:compile_command",
    "cut": "cut:cut_command",
    "chain": "chain:chain_command",
    "fit": "fit:fit",
    "inspect": "inspect:inspect",
    "methods": "methods:methods",
    "serve": "serve:serve",
    "export": "export:export",
    "bench": "bench:bench",
    "health": "health:health",
    "doctor": "doctor:doctor",
}


class Commands(click.Group):
    """The group whose commands are imported one at a time."""

    def list_commands(self, context: click.Context) -> list[str]:
        """All names, in the order of COMMANDS."""
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """One command, None for a name that is not there."""
        if name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[name].partition(":")
        command: click.Command = getattr(importlib.import_module(f"onnxplain.cli.{module}"), attribute)
        return command


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="onnxplain")
def cli() -> None:
    """Give it any ONNX model; it returns the model's answer and the reasons for it."""


def main(arguments: list[str] | None = None) -> None:
    """Entry point. Exit codes: 0, 2 usage, 3 model unsupported, 4 input or output, 130 interrupted."""
    warnings.filterwarnings("ignore")
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)
    try:
        cli.main(arguments, prog_name="onnxplain", standalone_mode=False)
    except OnnxplainError as error:
        _stop(str(error), error.exit_code)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        _stop(" ".join(error.format_message().split()), 2)
    except (click.Abort, KeyboardInterrupt):
        _stop("interrupted", 130)
    except BrokenPipeError:
        sys.exit(0)
    except OSError as error:
        _stop(f"{error.filename or 'a file'}: {error.strerror or error}", 4)
    except MemoryError:
        _stop("out of memory; use a smaller batch or fewer targets", 4)


def _stop(message: str, code: int) -> None:
    click.echo(f"onnxplain: {' '.join(message.split())}", err=True)
    sys.exit(code)
