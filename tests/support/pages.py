"""The code of the documentation's pages."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).parents[2]
AS_PROGRAM = "exec(compile(open({0!r}).read(), {0!r}, 'exec'))\n"
ON_PANDAS_2 = "import pandas; pandas.options.mode.copy_on_write = True"


class Page:
    """A page, and the folder in which its code runs.

    Its Python blocks are one script, in which every line has the page's number, together with what
    stands in comments like ``<!-- python``. ``<!-- after: NAME -->`` has it go on after that file,
    as ``python -i`` does. A comment before a block says what else becomes of it:
    ``<!-- file: NAME -->`` writes it to a file of its own, ``<!-- not run: REASON -->`` leaves it
    out, and so does ``<!-- command: NAME -->``, for .ci/run or another test runs it. Shell commands
    run after the script. A block of text after them is what they print.
    """

    BLOCK = re.compile(
        r"(?:^<!-- (?P<about>(?:file|not run|command): .+?) -->\n)?"
        r"^```(?P<kind>[^`\n]*)\n(?P<code>.*?)^```$|^<!-- python\n(?P<hidden>.*?)^-->$"
        r"|^<!-- after: (?P<after>.+?) -->$",
        re.MULTILINE | re.DOTALL,
    )

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self.script = ""
        self.files: dict[str, str] = {}
        self.commands: list[tuple[str, str | None]] = []
        text = path.read_text()
        before = None
        for block in self.BLOCK.finditer(text):
            kind, about, code = block["kind"], block["about"] or "", block["code"]
            if block["after"] is not None:
                self._add_code(text, block.start("after"), AS_PROGRAM.format(block["after"]))
            elif block["hidden"] is not None:
                self._add_code(text, block.start("hidden"), block["hidden"])
            elif about.startswith("file: "):
                self.files[about.removeprefix("file: ")] = code
            elif kind == "python" and not about:
                self._add_code(text, block.start("code"), code)
            elif kind == "sh" and not about:
                self.commands.append((code, None))
            elif kind == "text" and before == "sh":
                self.commands[-1] = (self.commands[-1][0], code)
            before = None if about else kind

    def _add_code(self, text: str, start: int, code: str) -> None:
        lines = text.count("\n", 0, start) - self.script.count("\n")
        self.script += "\n" * lines + code

    def runs_nothing(self) -> bool:
        return not (self.script or self.commands)

    def run(self, folder: Path) -> str:
        """Run all of it in a folder, and return what the script printed."""
        for name, code in {"lab.py": QUICK_START, **self.files}.items():
            (folder / name).write_text(code)
        printed = ""
        if self.script:
            # the title's line is free for what the text asks of users of pandas 2
            script = folder / self.name
            script.write_text((ON_PANDAS_2 if pd.__version__ < "3" else "") + self.script)
            printed = self._checked([sys.executable, "-W", "error", str(script)], folder)
        for command, expected in self.commands:
            found = self._checked(["bash", "-euo", "pipefail", "-c", command], folder)
            if expected is not None:
                assert re.sub(r"[0-9a-f]{32}", "…", found) == expected, command
        return printed

    def _checked(self, command: list[str], folder: Path) -> str:
        done = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, f"{self.name}: {command[-1]}\n{done.stdout}{done.stderr}"
        return done.stdout


QUICK_START = Page(ROOT / "README.md").files["lab.py"]
