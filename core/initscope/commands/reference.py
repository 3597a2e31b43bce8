"""The command-line reference of the guide, made from the parser: ``python -m initscope.commands.reference >
FILE``.
"""

from __future__ import annotations

import argparse

from initscope.commands.parser import build_parser
from initscope.config import OPTIONS, PRESETS, catalog, factory

HEAD = """# Command line

`initscope COMMAND` or `python -m initscope COMMAND`. Results go to standard output, progress and messages to standard
error. `--json` prints one JSON object as the last line. Exit status 0: done (a network that does not converge is a
result); 1: the run failed; 2: bad input, in one line.

Made from the parser by `python -m initscope.commands.reference`; do not edit by hand.
"""  # noqa: E501
FIELDS = """
## Fields of the configuration

Every field is a flag of `train`, `probe` and `sweep`, over the preset (`--preset`, `--config FILE`).

| flag | what it is | values | default |
|---|---|---|---|
"""


def reference() -> str:
    """The whole page, as Markdown."""
    parser = build_parser()
    [commands] = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    parts = [HEAD]
    helps = {choice.dest: choice.help for choice in commands._choices_actions}
    for name, command in commands.choices.items():
        parts.append(f"\n## `initscope {name}`\n\n{_sentence(helps[name] or '')}\n")
        rows = [_row(action) for action in command._actions if _own(action)]
        if rows:
            parts.append("\n| argument | what it is |\n|---|---|\n" + "\n".join(rows) + "\n")
    presets = [
        f"| `{name}` | {_cell(' '.join((make.__doc__ or '').split()))} |" for name, make in PRESETS.items()
    ]
    parts.append("\n## Presets\n\n| `--preset` | what it is |\n|---|---|\n" + "\n".join(presets) + "\n")
    data = [f"| `{name}` | {_cell(entry.help)} |" for name, entry in catalog.DATA.items()]
    data += [
        f"| `{catalog.IMAGE_FOLDER}DIR` | one sub-folder of images a class |",
        f"| `{factory.FORM}` | data of your own |",
    ]
    parts.append("\n## Data sets\n\n| `--data` | what it is |\n|---|---|\n" + "\n".join(data) + "\n")
    fields = [
        f"| `{spec.flag}` | {_cell(spec.help)} | {_cell(spec.expected)} | {_cell(_shown(spec.default))} |"
        for spec in OPTIONS.values()
    ]
    return "".join(parts) + FIELDS + "\n".join(fields) + "\n"


def _own(action: argparse.Action) -> bool:
    """Fields of the configuration have a table of their own, and ``--help`` explains itself."""
    return not action.dest.startswith("field_") and action.dest != "help"


def _row(action: argparse.Action) -> str:
    names = ", ".join(f"`{name}`" for name in action.option_strings) or f"`{action.metavar or action.dest}`"
    taken = f" {action.metavar}" if action.option_strings and action.metavar else ""
    if action.choices and not action.metavar:
        taken = " " + "|".join(map(str, action.choices))
    return f"| {names}{_cell(taken)} | {_cell(action.help or '').replace('%%', '%')} |"


def _shown(value: object) -> str:
    if value is None or value in ("", ()):
        return ""
    return f"`{value}`"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "?")) else ".")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    print(reference(), end="")
