"""The command line: its commands, and the one place where an error becomes an exit code."""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
from typing import Annotated

import typer

from vitcli import __version__
from vitcli.cli import console, habits
from vitcli.cli.table import COMMANDS
from vitcli.config_values import shown
from vitcli.errors import ResourceError, Stopped, UsageError, VitError, did_you_mean, is_out_of_memory
from vitcli.world import launched


def _version(wanted: bool) -> None:
    if wanted:
        console.print_lines([f"vit {__version__}"])
        raise typer.Exit


def vit(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options that stand before a command."""
    try:
        os.getcwd()  # noqa: PTH109 (it is there or not)
    except OSError as error:
        raise ResourceError(f"the working directory is gone: {error.strerror}", "cd to a folder that exists") from None


def make_app() -> typer.Typer:
    """The command line with the commands that the table has now."""
    app = typer.Typer(
        name="vit",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
        help="The Vision Transformer as a command line: train a classifier, move it to your images, measure it.",
        epilog="A first session, without any data of your own:  vit pretrain,  vit finetune --img-size 16,  vit eval",
    )
    app.callback()(vit)
    for name, command in COMMANDS.items():
        app.command(name)(command)
    return app


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its code (errors.py)."""
    # OpenMP's threads wait by spinning, by default for a millisecond, which other work on the same cores pays for
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    _occupy_streams()
    console.take_any_text()
    arguments = sys.argv[1:] if arguments is None else arguments
    code = run(arguments)
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        console.silence(1, 2)
    if "RANK" in os.environ:  # threads of the processes' connections may outlive the interpreter, which aborts it
        os._exit(code)
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """The exit code of a command; errors are shown, a closed pipe is quiet. The code is true even if nobody can read why."""
    console.asked_for.clear()
    try:
        if not launched().is_first:  # the first process speaks for all, and does alone what is not shared
            if not {"pretrain", "finetune", "eval", "predict"} & set(arguments[:1]) or "--dry-run" in arguments:
                return 0
            arguments = [*arguments, "--quiet"]
        code = int(make_app()(arguments, prog_name="vit", standalone_mode=False) or 0)
        console.say_written("--quiet" in arguments or "-q" in arguments)
        return code
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except Stopped as stopped:
        return 128 + stopped.number
    except Exception as raised:
        if isinstance(raised, console.Unread):
            console.silence(1, 2)
            return 0
        if type(raised).__name__ == "NoArgsIsHelpError":
            print(raised.format_message() or "", end="", file=sys.stderr)  # type: ignore[attr-defined]
            return UsageError.code
        error = raised if isinstance(raised, VitError) else _understood(raised, arguments)
        try:
            _show(error, "--json" in arguments)
        except (OSError, ResourceError, console.Unread):
            console.silence(1, 2)
        return error.code


def _show(error: VitError, as_json: bool) -> None:
    if os.environ.get("VIT_TRACEBACK") == "1":
        import traceback

        traceback.print_exc()
    console.show_error(error, as_json)


def _understood(error: Exception, arguments: list[str]) -> VitError:
    """A usage error of the parser, no memory, a disk or a file that fails, a bug in vit."""
    if hasattr(error, "format_message"):
        return _usage(error, arguments)
    if is_out_of_memory(error):
        return ResourceError("out of memory", "a smaller --batch-size, or --set train.accumulate=2, needs less")
    if isinstance(error, typer.Abort):
        return UsageError("aborted", "run the command again")
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return UsageError(f"{shown(str(error.filename))}: no file has a name that long", "check what was typed")
    if isinstance(error, OSError) and error.errno is not None:
        return ResourceError(
            f"{error.filename or 'a file'}: {error.strerror}", "free some space, or choose a place that can be used"
        )
    return VitError(
        f"a bug in vit: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
        "VIT_TRACEBACK=1 shows where; please report it with the command",
    )


def _usage(error: Exception, arguments: list[str]) -> UsageError:
    """Typer's error about an option or argument: what that is called here, else the nearest one that exists."""
    context = getattr(error, "ctx", None)
    where = context.command_path if context is not None else "vit"
    known = [o for parameter in context.command.params for o in parameter.opts] if context is not None else []
    hint = f"see {where} --help"
    wrong = getattr(error, "option_name", None)
    if wrong and type(error).__name__ == "NoSuchOption":
        typed = next((a for a in arguments if a == wrong or a.startswith(f"{wrong}=")), "") or next(
            (a for a in arguments if not a.startswith("--") and a.startswith(wrong)), wrong
        )
        typed = typed.partition("=")[0]
        near = did_you_mean(typed, [o for o in [*known, "--help"] if o.startswith("--")], hint)
        return UsageError(f"no option {typed} in {where}", habits.of_option(typed, where, known) or near)
    message = error.format_message().rstrip(".")  # type: ignore[attr-defined]
    if message.startswith("No such command") and context is not None:
        name = message.split("'")[1]
        near = did_you_mean(name, context.command.list_commands(context))
        return UsageError(f"no command {name!r}", habits.of_command(name) or near)
    extra = re.fullmatch(r"Got unexpected extra arguments?(?:\(s\))? \((.+)\)", message)
    if extra is not None:
        word, first = extra[1].split()[0], next((a for a in arguments[1:] if not a.startswith("-")), "")
        return UsageError(
            f"{where} takes no argument {extra[1]}",
            habits.of_blank(arguments) or habits.of_extra(word, where, known, first) or hint,
        )
    return UsageError(message, hint)


def _occupy_streams() -> None:
    """A standard stream that the caller closed goes nowhere, rather than into the next file that is opened."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    if sys.stdin is None:
        sys.stdin = os.fdopen(0)
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w")
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w")
