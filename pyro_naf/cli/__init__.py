"""The command line: ``pyro-naf refine`` approximates a posterior and says how good it is.

The commands of densities are in :mod:`pyro_naf.density.commands`. Whatever the user got wrong ends
in one line on the standard error and exit status 2.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import pyro_naf
from pyro_naf.density.commands import add_commands
from pyro_naf.support.command_line import CommandError, describe, first_line

from .refine import add_refine


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise CommandError(f"{message} (see {self.prog} --help)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="pyro-naf", description="Neural autoregressive flows for Pyro.")
    parser.add_argument("--version", action="version", version=f"pyro-naf {pyro_naf.__version__}")
    commands = parser.add_subparsers(metavar="command", required=True)
    add_refine(commands)
    add_commands(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    :param arguments: the arguments after the program's name; by default ``sys.argv[1:]``.
    :returns: the exit status: 0, 2 after an error, 130 after an interrupt.
    """
    try:
        options = _parser().parse_args(arguments)
        status = options.run(options)
        sys.stdout.flush()
        return status or 0
    except KeyboardInterrupt:
        print("pyro-naf: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read the table has seen enough; there is nobody to tell, and nothing to flush to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except CommandError as error:
        message = str(error)
    except OSError as error:
        message = first_line(error)
    except Exception as error:
        message = describe(error)
    print(f"pyro-naf: error: {' '.join(message.splitlines())}", file=sys.stderr)
    return 2
