"""Renew constraints.txt: the versions of everything that pyproject.toml asks for, with the hashes of all files of each.

Versions stay as they are unless uv is told otherwise: --upgrade, or --upgrade-package NAME.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

FILE = Path(__file__).parents[1] / "constraints.txt"
OLDEST = "3.11.5"
"""Some tools of the documentation need it; the package itself runs on every 3.11."""
SETTINGS = ("--universal", "--python-version", OLDEST, "--generate-hashes", "--annotation-style", "line", "--extra", "dev")


def torch_in(text: str) -> tuple[str, set[str]]:
    """The version of torch in constraints.txt, and its hashes."""
    [torch] = re.finditer(r"^torch==(\S+)([^#]*)", text, re.MULTILINE)
    return torch[1], set(re.findall(r"sha256:(\w+)", torch[2]))


def torch_here(version: str) -> str:
    """The SHA-256 of the torch that pip takes on this machine: a CPU build that lies elsewhere is unknown to uv."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--no-deps", "--report", "-"]
    report = subprocess.run([*pip, f"torch=={version}"], check=True, stdout=subprocess.PIPE).stdout
    return json.loads(report)["install"][0]["download_info"]["archive_info"]["hashes"]["sha256"]


before, known = torch_in(FILE.read_text(encoding="utf-8"))
uv = [str(Path(sys.executable).with_name("uv")), "pip", "compile", "--quiet", *SETTINGS, *sys.argv[1:]]
output = ["--custom-compile-command", "make constraints", "--output-file", FILE.name, "pyproject.toml"]
subprocess.run([*uv, *output], check=True, cwd=FILE.parent)

text = FILE.read_text(encoding="utf-8")
version, hashes = torch_in(text)
others = ({torch_here(version)} | (known if version == before else set())) - hashes
lines = [f"torch=={version} \\\n", *(f"    --hash=sha256:{digest} \\\n" for digest in sorted(others))]
FILE.write_text(text.replace(lines[0], "".join(lines)), encoding="utf-8")
