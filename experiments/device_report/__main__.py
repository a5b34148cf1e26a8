"""What an accelerator makes of this code: right numbers first, then seconds; one command for the day one is at hand.

    python -m experiments.device_report --out DIR [--minutes 8] [--size released|debug]

Runs the sections of `SECTIONS`, the most valuable first, as long as the minutes last, and writes DIR/SECTION.json after
each and DIR/report.md at the end. The same command goes on with what is missing; a section that took the process with
it comes last then. Weights are random but for the section `parity`, which needs `tests/goldens` of the repository.
"""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax

from experiments.command import command
from experiments.device_report.sections import GOLDENS, SECTIONS, Section, Settings, SizeName
from experiments.rows import markdown, show
from internvlu_jax.utils.compilation import compile_quickly, enable_cache
from internvlu_jax.utils.devices import prepare_cpu
from internvlu_jax.utils.files import read_json, write_json, write_text


@dataclass(frozen=True)
class Arguments:
    out: Path
    minutes: float = 8.0
    """No section begins that is expected to end later."""
    size: SizeName = "released"
    """debug: tiny models in float32, compiled in haste, which say whether all of it runs."""
    sections: tuple[str, ...] = ()
    """By default all."""
    goldens: Path = GOLDENS
    """Where the recorded checkpoints lie."""


def main(arguments: Arguments) -> int:
    """Status 0 where no section failed, 1 where one did, 2 for what a user can put right."""
    prepare_cpu()
    enable_cache()
    if arguments.size == "debug":
        compile_quickly()
    try:
        sections = chosen(arguments.sections)
        arguments.out.mkdir(parents=True, exist_ok=True)
        done = finished(arguments.out, sections, arguments.size)
    except (ValueError, OSError) as error:
        print(f"device_report: {error}", file=sys.stderr)
        return 2
    settings, began = Settings(arguments.size, arguments.goldens), time.monotonic()
    for section in order(sections, done):
        left = 60 * arguments.minutes - (time.monotonic() - began)
        if left < section.seconds:
            print(f"{section.name}: not begun, {max(left, 0):.0f} s are left and it takes some {section.seconds:.0f} s")
            continue
        print(f"{section.name} ...", flush=True)
        done[section.name] = run(section, settings, arguments.out)
        record = done[section.name]
        if "error" in record:
            print(f"{section.name}: {record['error']}")
        else:
            show(record["rows"], section.name)
    write_text(arguments.out / "report.md", page(sections, done, arguments.size))
    print(arguments.out / "report.md")
    return int(any(record.get("error") for record in done.values()))


def chosen(names: Sequence[str]) -> list[Section]:
    """Raises ValueError for a name that is not a section's."""
    known = {section.name: section for section in SECTIONS}
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"section {unknown[0]!r}; expected some of {', '.join(known)}")
    return [known[name] for name in names] if names else list(SECTIONS)


def finished(out: Path, sections: Sequence[Section], size: SizeName) -> dict[str, Any]:
    """The records in a directory by section, those that only began among them.

    Raises ValueError for a directory of another device or size.
    """
    done = {}
    for section in sections:
        path = out / f"{section.name}.json"
        if path.is_file():
            done[section.name] = record = read_json(path)
            for name, value in whole(size).items():
                if record.get(name) != value:
                    raise ValueError(f"{path}: {name} is {record.get(name)!r}, here {value!r}; choose another --out")
    return done


def whole(size: SizeName) -> dict[str, str]:
    """What all sections of one report have in common."""
    return {"device": jax.devices()[0].device_kind, "jax": jax.__version__, "size": size}


def order(sections: Sequence[Section], done: Mapping[str, Any]) -> list[Section]:
    """What is left: sections that failed are tried again, those that began and did not end come last."""
    missing = [section for section in sections if "rows" not in done.get(section.name, {})]
    return sorted(missing, key=lambda section: section.name in done and "error" not in done[section.name])


def run(section: Section, settings: Settings, out: Path) -> dict[str, Any]:
    """Runs a section and keeps its record; what the device refuses is written down and ends the section alone."""
    path, start = out / f"{section.name}.json", time.monotonic()
    record: dict[str, Any] = {
        **whole(settings.size),
        "python": platform.python_version(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python -m experiments.device_report", *sys.argv[1:]]),
    }
    write_json(path, record)
    try:
        record["rows"] = section.rows(settings)
    except (jax.errors.JaxRuntimeError, ValueError, NotImplementedError) as error:
        record["error"] = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:300]}"
    record["seconds"] = time.monotonic() - start
    write_json(path, record)
    return record


def page(sections: Sequence[Section], done: Mapping[str, Any], size: SizeName) -> str:
    """The report as Markdown."""
    about = whole(size)
    lines = [f"# {about['device']}, JAX {about['jax']}, {size} sizes", ""]
    for section in sections:
        record = done.get(section.name, {})
        lines += [f"## {section.name}", "", f"{section.about}", ""]
        if "rows" in record:
            lines += markdown(record["rows"])
            lines += ["", f"{record['date']}, {record['seconds']:.0f} s in all: `{record['command']}`", ""]
        else:
            lines += [record.get("error", "Began and did not end." if record else "Not begun."), ""]
    return "\n".join(lines)


if __name__ == "__main__":
    command(main, Arguments, "experiments.device_report", __doc__)
