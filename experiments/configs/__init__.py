"""Runs by name. Each module holds one `config`, and in its docstring the command that starts it."""

import difflib
import sys

from experiments.configs import debug, finetune, stage1, stage2, stage3

CONFIGS = {module.config.name: module.config for module in (stage1, stage2, stage3, debug, finetune)}


def not_named(argv: list[str], page: str) -> int | None:
    """The exit status of a command whose first argument is no configuration, after a word on it; None if it is one.

    page: what is printed where it was not meant to be one.
    """
    if not argv or argv[0].startswith("-"):
        print(page)
        return 0 if argv in (["-h"], ["--help"]) else 2
    if argv[0] in CONFIGS:
        return None
    near = difflib.get_close_matches(argv[0], CONFIGS, 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    expected = ", ".join(CONFIGS)
    print(f"error: there is no configuration {argv[0]!r}; expected one of {expected}{hint}", file=sys.stderr)
    return 2
