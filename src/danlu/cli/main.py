"""The ``danlu`` command: find the verb's file, import only that, turn errors into one line and an exit status.

Verbs are the files of this folder that define ``command``; the first line of each docstring is its help, read without
importing. Exit status: 0 done, 1 an error the message explains, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import ast
import importlib
import os
import sys
from pathlib import Path

from danlu.core.errors import DanluError, nearest

_EXAMPLES = """\
Examples:
  danlu run recipes/product_copy.yaml              raw reviews in, a served model out; again: goes on or does nothing
  danlu run recipes/product_copy.yaml train.steps=50 --no-serve
  danlu runs                                       what ran, how long, with what result
  danlu lineage product-copy                       from the model back to the fetched files
  danlu serve product-copy --port 8000             an OpenAI-compatible server
  danlu chat product-copy                          talk with it here

`danlu VERB --help` explains one verb. Everything lives in .danlu (or --home, or $DANLU_HOME)."""


def verbs(folder: Path = Path(__file__).parent) -> dict[str, str]:
    """Verb to its one line of help, without importing any."""
    found: dict[str, str] = {}
    for path in sorted(folder.glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if any(isinstance(node, ast.FunctionDef) and node.name == "command" for node in tree.body):
            found[path.stem] = (ast.get_docstring(tree) or "").partition("\n")[0]
    return found


def main(arguments: list[str] | None = None) -> int:
    """Run one command line; returns the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    is_debug = os.environ.get("DANLU_DEBUG") == "1" or "--debug" in words
    words = [word for word in words if word != "--debug"]
    if not words or words[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    if words[0] == "--version":
        from importlib.metadata import version

        print(f"danlu {version('danlu')}")
        return 0
    verb = words[0]
    if verb not in verbs():
        return _complain(f"There is no verb '{verb}'.", f"{nearest(verb, verbs())} See danlu --help.", 2)
    try:
        return _call(verb, words[1:])
    except DanluError as error:
        if is_debug:
            raise
        return _complain(error.message, error.hint, 1)
    except MemoryError as error:
        if is_debug:
            raise
        what = f"There is not enough memory{f': {error}' if str(error) else ''}."
        return _complain(what, "End other programs, or take a smaller model, batch or context.", 1)
    except KeyboardInterrupt:
        if is_debug:
            raise
        return _complain("Interrupted.", "What is finished is kept; run the same command to go on.", 130)
    except BrokenPipeError:  # the reader of our output (head, less) went away: nothing is wrong
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _call(verb: str, arguments: list[str]) -> int:
    import tyro

    module = importlib.import_module(f"danlu.cli.{verb}")
    try:
        status = tyro.cli(module.command, args=arguments, prog=f"danlu {verb}", description=module.__doc__)
    except SystemExit as stop:  # tyro has printed help (0) or what was wrong (2)
        return stop.code if isinstance(stop.code, int) else 2
    sys.stdout.flush()
    return int(status or 0)


def _help() -> str:
    known = verbs()
    width = max(map(len, known))
    lines = "\n".join(f"  {name:<{width}}  {text}" for name, text in known.items())
    return f"danlu: own a large model end to end.\n\nUsage: danlu VERB [options]\n\nVerbs:\n{lines}\n\n{_EXAMPLES}"


def _complain(message: str, hint: str, status: int) -> int:
    """One red line (the hint after it) on stderr."""
    is_colour = sys.stderr.isatty() and "NO_COLOR" not in os.environ
    red, dim, end = ("\x1b[1;31m", "\x1b[2m", "\x1b[0m") if is_colour else ("", "", "")
    print(f"{red}error:{end} {message}" + (f" {dim}{hint}{end}" if hint else ""), file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
