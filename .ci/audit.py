"""Ask a vulnerability service about all versions in constraints.txt; options go on to pip-audit. Exit code 1: it knows of some.

Without an answer the audit is skipped, in one line that says why: a change must not wait for somebody else's service.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

FILE = Path(__file__).parents[1] / "constraints.txt"
COMMAND = [sys.executable, "-m", "pip_audit", "--requirement", str(FILE), "--disable-pip", "--format", "json"]
OPTIONS = ["--vulnerability-service", "osv", "--timeout", "5", "--progress-spinner", "off"]
NO_ANSWER = re.compile(r"^requests\.exceptions\.\w+|Could not connect to .*", re.MULTILINE)
"""What pip-audit ends with where the service does not answer: the error of its HTTP library, or its own words."""

said = subprocess.run([*COMMAND, *OPTIONS, *sys.argv[1:]], capture_output=True, text=True)
try:
    answer = json.loads(said.stdout)["dependencies"]
except ValueError:
    if no_answer := NO_ANSWER.findall(said.stderr):
        print(f"audit skipped: the vulnerability service does not answer ({no_answer[-1]})")
        sys.exit(0)
    sys.exit(f"{said.stderr}audit: pip-audit failed")

known = [project for project in answer if "vulns" in project]
found = [(project, vulnerability) for project in known for vulnerability in project["vulns"]]
for project, vulnerability in found:
    fixed = ", ".join(vulnerability["fix_versions"]) or "no version yet"
    print(f"{project['name']} {project['version']}: {vulnerability['id']}, fixed in {fixed}")
if known:
    print(f"audit: {len(found)} known vulnerabilities in {len(known)} versions")
    for project in answer:
        if project not in known:
            print(f"not known to the service: {project['name']}")
else:
    print(f"audit skipped: the vulnerability service knows none of the {len(answer)} versions")
sys.exit(bool(found))
