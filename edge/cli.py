"""The one command `beltline`: finds a sub-command by name, loads it alone, and turns errors into one clear line.

Sub-commands are the entry points of the group `beltline.commands`, each a function or an app of typer's. Only the
called one is imported, so a box without torch never meets `compile`, and `beltline --help` imports none of them: their
one-line help stands in the table below. Imports that take time wait until Ctrl-C is understood.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points, version
from typing import TYPE_CHECKING, NamedTuple

from edge.errors import BeltlineError

if TYPE_CHECKING:
    import typer
    from rich.console import Console

GROUP = "beltline.commands"
OK, FAILED, USAGE, MISSING_EXTRA, INTERRUPTED, TERMINATED = 0, 1, 2, 3, 130, 143


class Known(NamedTuple):
    help: str
    extra: str  # the optional dependencies that the command needs


COMMANDS = {
    "compile": Known("Turn a folder of good parts into a bundle.", "compile"),
    "bench": Known("Compare methods on labelled data sets: the table that papers print, and their maps.", "compile"),
    "adapt": Known("Tell a CLIP what defects look like, on labelled pictures or scans of other things.", "compile"),
    "sign": Known("Sign a bundle, so that boxes accept it.", "edge"),
    "keys": Known("Make the keys that sign bundles, and show those that a box accepts.", "edge"),
    "run": Known("Run the station of a station.toml: trigger, frame, score, verdict, act, journal.", "edge"),
    "publish": Known("Send the journal's outcomes to the MQTT broker.", "edge"),
    "status": Known("Show what the running station does, live.", "edge"),
    "ack": Known("Acknowledge the latched fault, so that the belt may run again.", "edge"),
    "jog-gate": Known("Cycle the reject gate once.", "edge"),
    "install": Known("Verify a bundle, try it on this box, and put it in place; with a trial, and a way back.", "edge"),
    "rollback": Known("Put the bundle back that was in place before.", "edge"),
    "bundles": Known("Show which bundles are installed, and how the trial of the newest goes.", "edge"),
    "engine": Known("Build an engine for TensorRT, look into it, and check whether it fits this machine.", "edge"),
    "doctor": Known("Say what this box has and what it lacks.", "edge"),
}
EXIT_CODES = {
    OK: "done, and every promise kept",
    FAILED: "the operation failed, or a promise was broken",
    USAGE: "the command line was not understood",
    MISSING_EXTRA: "an optional part of beltline is not installed; the message has the install line",
    INTERRUPTED: "interrupted with Ctrl-C",
    TERMINATED: "ended by SIGTERM before it was done",
}


def main(argv: list[str] | None = None) -> int:
    """Run one sub-command and return its exit code."""
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)  # the exit code of an ending process stands
    try:
        return _main(sys.argv[1:] if argv is None else argv)
    except KeyboardInterrupt:
        sys.stderr.write("beltline: interrupted\n")
        return INTERRUPTED


def _main(arguments: list[str]) -> int:
    from rich.console import Console  # noqa: PLC0415

    commands = {entry.name: entry for entry in entry_points(group=GROUP)}
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        _show_help(Console(highlight=False, soft_wrap=True), commands)
        return OK if arguments else USAGE
    if arguments[0] == "--version":
        Console(highlight=False).print(version("beltline"))
        return OK
    name, *rest = arguments
    if name not in commands:
        return _fail("beltline", f"no command {name!r}. There are: {', '.join(sorted(commands))}.", USAGE, rest)
    try:
        return _call(commands[name], rest)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] in ("edge", "compile", "calibration", "firmware_bridge"):
            raise
        extra = COMMANDS[name].extra if name in COMMANDS else name
        message = f"the Python module {error.name!r} is not installed. Install it with: pip install 'beltline[{extra}]'"
        return _fail(f"beltline {name}", message, MISSING_EXTRA, rest)
    except BeltlineError as error:
        return _fail(f"beltline {name}", str(error), error.exit_code, rest)
    except OSError as error:
        return _fail(f"beltline {name}", str(error), FAILED, rest)


def _fail(who: str, message: str, code: int, arguments: list[str]) -> int:
    """One line for people, and one JSON document where it was asked for."""
    sys.stderr.write(f"{who}: {message}\n")
    _write_error(message, arguments)
    return code


def _write_error(message: str, arguments: list[str]) -> None:
    if "--json" in arguments:
        sys.stdout.write(json.dumps({"error": message}) + "\n")


def _load(entry: EntryPoint) -> Callable[..., None] | typer.Typer:
    """Import a command. Ctrl-C ends the process at once: an extension module makes an ImportError of its exception."""

    def end(*_: object) -> None:
        os.write(2, b"beltline: interrupted\n")
        os._exit(INTERRUPTED)

    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN  # a job in a script's background
    if ignored or threading.current_thread() is not threading.main_thread():
        return entry.load()  # type: ignore[no-any-return]
    before = signal.signal(signal.SIGINT, end)
    try:
        return entry.load()  # type: ignore[no-any-return]
    finally:
        signal.signal(signal.SIGINT, before)


def _call(entry: EntryPoint, arguments: list[str]) -> int:
    import typer  # noqa: PLC0415

    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")
    epilog = "Exit codes: " + "; ".join(f"{c} {t}" for c, t in EXIT_CODES.items())
    loaded = _load(entry)
    if isinstance(loaded, typer.Typer):  # a command with sub-commands of its own
        app.add_typer(loaded)
        app.info.epilog = epilog
    else:
        app.command(name=entry.name, epilog=epilog)(loaded)
    try:
        app(args=arguments, prog_name=f"beltline {entry.name}")
    except SystemExit as ended:
        if usage := getattr(ended.__context__, "format_message", None):  # typer has shown it to people
            _write_error(usage(), arguments)
        return ended.code if isinstance(ended.code, int) else OK if ended.code is None else FAILED
    return OK


def _show_help(console: Console, commands: dict[str, EntryPoint]) -> None:
    console.print("Usage: beltline COMMAND [OPTIONS]\n\nAnomaly inspection on a conveyor line.\n", markup=False)
    width = max(map(len, commands), default=0)
    order = [*(name for name in COMMANDS if name in commands), *sorted(set(commands) - set(COMMANDS))]
    for name in order:
        known = COMMANDS.get(name)
        console.print(f"  {name:{width}}  {known.help if known else commands[name].value}", markup=False)
    console.print(
        "\nbeltline COMMAND --help explains one command; beltline --version names this version.\n\nExit codes:"
    )
    for code, meaning in EXIT_CODES.items():
        console.print(f"  {code}  {meaning}", markup=False)


if __name__ == "__main__":
    sys.exit(main())
