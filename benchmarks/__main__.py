"""Measure what values cost, and write docs/performance.md.

    python -m benchmarks                 all workloads, with what is installed here
    python -m benchmarks --peers         and with other libraries, in an environment of their own
    python -m benchmarks --instructions  and count instructions, where valgrind is installed
    python -m benchmarks --only insert   workloads and subjects that are named like this, no page

It mounts a fresh file system where it may (as root), and says which one it used.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

from benchmarks import report
from benchmarks.file_system import fresh_file_system
from benchmarks.measuring import HERE_PYTHON, ROOT, Figures, count_instructions, measure
from benchmarks.peers import REQUIREMENTS, make_environment
from benchmarks.subjects import HERE, SUBJECTS
from benchmarks.workloads import WORKLOADS, Workload

PAGE = ROOT / "docs" / "performance.md"
COUNTED = ("insert_in_one_commit", "load_one_key", "replace", "delete")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--peers", action="store_true", help="install and measure other libraries")
    parser.add_argument("--instructions", action="store_true", help="count instructions, slowly")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each subject (7)")
    parser.add_argument(
        "--seconds", type=float, default=15, help="for all turns of a workload (15)"
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="workloads with this in the key")
    parser.add_argument("--subjects", default="", metavar="A,B", help="these subjects alone")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures as JSON")
    parser.add_argument("--page", type=Path, help="write this page (docs/performance.md)")
    return parser.parse_args()


def able(workload: Workload, name: str) -> bool:
    """Return whether a subject has all that a workload needs."""
    return not SUBJECTS[name].cannot.keys() & set(workload.needs)


def interpreters(
    options: argparse.Namespace, environment: Path, results: report.Results
) -> dict[str, Path]:
    """Return the interpreter of each subject, and note which peers there are."""
    pythons = dict.fromkeys(HERE, HERE_PYTHON)
    if options.peers:
        peers = make_environment(environment)
        pythons |= dict.fromkeys(peers.versions, peers.python)
        results.versions |= peers.versions
        results.missing |= peers.missing
    else:
        results.missing |= dict.fromkeys(REQUIREMENTS, "not asked for: --peers")
    chosen = options.subjects.split(",") if options.subjects else pythons
    return {name: python for name, python in pythons.items() if name in chosen}


def run(
    options: argparse.Namespace, pythons: Mapping[str, Path], folder: Path
) -> Iterator[Figures]:
    """Run the workloads that were asked for, and print each when it is done."""
    for key, workload in WORKLOADS.items():
        if options.only in key:
            subjects = {name: pythons[name] for name in pythons if able(workload, name)}
            figures = measure(
                workload, subjects, folder, rounds=options.rounds, seconds=options.seconds
            )
            if options.instructions and (key in COUNTED or key.startswith("elsewhere")):
                count_instructions(figures, workload, subjects, folder)
            print(report.section(workload, figures), flush=True)
            yield from figures


def main() -> None:
    options = arguments()
    with (
        tempfile.TemporaryDirectory() as environment,
        fresh_file_system() as (folder, file_system),
    ):
        print(f"File system: {file_system}.", flush=True)
        results = report.Results(file_system)
        pythons = interpreters(options, Path(environment), results)
        results.figures += run(options, pythons, folder)
    if options.json:
        options.json.write_text(json.dumps(asdict(results), indent=1))
    page = options.page or (None if options.only or options.subjects else PAGE)
    if page:
        report.write(page, results)
        print(f"wrote {page}")


if __name__ == "__main__":
    main()
