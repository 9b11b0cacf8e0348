"""The command line. Imports no torch at start."""

from __future__ import annotations

import errno
import gc
import sys
from typing import Annotated

import typer

from dit_compress.cli.encode import encode
from dit_compress.cli.generate import generate
from dit_compress.cli.inspect import inspect
from dit_compress.cli.plan import check, plan
from dit_compress.cli.play import play
from dit_compress.cli.plugins import new, plugins, schema
from dit_compress.cli.prune import prune
from dit_compress.cli.run import report, run
from dit_compress.cli.sensitivity import sensitivity
from dit_compress.cli.share import card, pull, push
from dit_compress.cli.twin import rehearse, twin
from dit_compress.cli.verify import verify
from dit_compress.core.ending import keep_garbage
from dit_compress.core.errors import UserError
from dit_compress.core.progress import hush
from dit_compress.core.version import __version__

app = typer.Typer(
    help="Turn a large video Diffusion Transformer into one that a phone can run.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

COMMANDS = (
    run, check, plan, inspect, prune, sensitivity, generate, encode, report, card, push, pull, verify,
    play, twin, plugins, new, schema,
)  # fmt: skip
"""In the order of ``--help``."""
RARELY = 50_000
"""New objects between two searches for garbage: libraries make millions that stay, and each search walks them all."""
for command in COMMANDS:
    app.command()(command)
app.command("try")(rehearse)  # the name is Python's own word
_PLACES = (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.EROFS)
"""What a path that the user named can be: too long, a loop, through a file, a folder, forbidden."""
_LONG = 300


def main() -> None:
    """Run the command line: a user's mistake is one message and exit status 2."""
    hush()
    keep_garbage()
    gc.set_threshold(RARELY, 20)
    if hasattr(sys.stdout, "reconfigure"):  # a path may hold bytes that are no text
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status = app(standalone_mode=False)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(2) from None
    except OSError as error:
        if error.errno not in _PLACES:
            raise
        sys.stderr.write(f"{str(error.filename)[:_LONG]}: {error.strerror}. Name another path\n")
        raise SystemExit(2) from None
    except (typer.Exit, SystemExit) as leave:
        raise SystemExit(getattr(leave, "exit_code", getattr(leave, "code", 0))) from None
    except (typer.Abort, KeyboardInterrupt):
        raise SystemExit(130) from None
    except Exception as error:
        # A wrong option. Typer may bring a click of its own, whose exceptions are not those of the package click.
        if not hasattr(error, "format_message") or not hasattr(error, "show"):
            raise
        error.show()
        raise SystemExit(2) from None
    if status:  # typer.Exit comes back as a number
        raise SystemExit(status)


def _version(value: bool) -> None:  # noqa: FBT001 - typer's callback
    if value:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Turn a large video Diffusion Transformer into one that a phone can run."""
