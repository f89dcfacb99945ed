"""The ``dcz`` command: parses, calls, prints. Heavy imports stand where they are used."""

from __future__ import annotations

import sys
from typing import Any, NoReturn

import click

from dcompress import __version__
from dcompress.cli.compare import compare
from dcompress.cli.decode import decode, verify
from dcompress.cli.encode import encode
from dcompress.cli.info import info
from dcompress.cli.session import USAGE_ERROR, Session
from dcompress.cli.tune import tune
from dcompress.constants import MAJOR_VERSION, MINOR_VERSION

__all__ = ["cli", "main"]

_HELP = """Compress PyTorch models to .dcz files, and back.

Exit codes: 0 success, 1 input or output failed, 2 wrong usage, 3 damaged file, 4 unsupported, 5 over a
limit, 130 interrupted. Results go to stdout, everything else to stderr.
"""
_EPILOG = """\b
Examples:
  dcz encode model.safetensors             writes model.dcz
  dcz encode model.pt --preset paper       prunes, shares weights, codes
  dcz encode model.pt --quality 25         as small as it gets at 25 dB
  dcz info model.dcz
  dcz decode model.dcz -o model.pt
"""


class _Dcz(click.Group):
    """The group of commands; every error of theirs ends here."""

    def main(self, *args: Any, **options: Any) -> NoReturn:
        """Run the command line and exit."""
        session = Session()
        options |= {"prog_name": "dcz", "standalone_mode": False, "obj": session}
        run = super().main
        sys.exit(session.run(lambda: run(*args, **options)))

    def invoke(self, ctx: click.Context) -> Any:
        """Run the chosen command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:  # click would print an empty line
            raise click.Abort from None

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order in which they are used."""
        return list(self.commands)


@click.group(
    cls=_Dcz,
    help=_HELP,
    epilog=_EPILOG,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(
    __version__, prog_name="dcz", message=f"%(prog)s %(version)s (format {MAJOR_VERSION}.{MINOR_VERSION})"
)
@click.pass_context
def cli(context: click.Context) -> None:
    """Compress PyTorch models."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help(), err=True)
        context.exit(USAGE_ERROR)


for _command in (encode, decode, info, verify, compare, tune):
    cli.add_command(_command)


def main() -> NoReturn:
    """Run ``dcz``. Signals that end it do so as Ctrl-C does, so that no temporary file stays behind."""
    import signal

    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, lambda caught, _: sys.exit(128 + caught))
    cli.main()
