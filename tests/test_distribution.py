"""What is installed with xhat, and what is shipped."""

import gzip
import hashlib
import json
import os
import re
import stat
import subprocess
import sys
import tarfile
import threading
import zipfile
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parents[1]
CONSTRAINTS = ROOT / "constraints.txt"


def plain(name):
    """A project's name as registries compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pinned():
    """The hashes of each project in constraints.txt, by its name and version."""
    lines = re.sub(r"\\\n", "", re.sub(r"^ *#.*\n", "", CONSTRAINTS.read_text(), flags=re.MULTILINE)).splitlines()
    found = [re.fullmatch(r"([\w.-]+)==([\w.]+)(?: ; [^\\]*?)?((?: +--hash=sha256:[0-9a-f]{64})+) *", line) for line in lines]
    assert all(found), [line for line, match in zip(lines, found, strict=True) if not match]
    return {(plain(match[1]), match[2]): re.findall(r"sha256:(\w+)", match[3]) for match in found}


def test_every_version_that_pip_may_install_has_hashes():
    assert len(pinned()) > 100


def test_whatever_pyproject_asks_for_is_pinned():
    asked = subprocess.run([sys.executable, ROOT / ".ci/needed.py", "dev"], capture_output=True, text=True, check=True).stdout
    names = {plain(re.match(r"[\w.-]+", line)[0]) for line in asked.splitlines()}
    assert {"torch", "hatchling", "pytest", "pip"} <= names <= {name for name, _ in pinned()}


def audit(*options, path=""):
    """Exit code and output of `make audit`."""
    environment = os.environ | {"PYTHONPATH": str(path)}
    done = subprocess.run([sys.executable, ROOT / ".ci/audit.py", *options], capture_output=True, text=True, env=environment)
    return done.returncode, (done.stdout + done.stderr).strip()


def project(**values):
    return {"name": "torch", "version": "2.13.0", "vulns": []} | values


FINDING = {"id": "PYSEC-1", "fix_versions": ["2.13.1"]}
UNREACHABLE = (
    "Traceback (most recent call last):\nrequests.exceptions.ConnectionError: HTTPSConnectionPool: Max retries exceeded"
)


@pytest.mark.parametrize(
    ("answer", "stderr", "code", "says"),
    [
        ([project()], "", 0, "audit: 0 known vulnerabilities in 1 versions"),
        ([project(vulns=[FINDING])], "", 1, "torch 2.13.0: PYSEC-1, fixed in 2.13.1\naudit: 1 known"),
        ([project(), {"name": "six", "skip_reason": "not found"}], "", 0, "in 1 versions\nnot known to the service: six"),
        ([{"name": "six", "skip_reason": "not found"}], "", 0, "audit skipped: the vulnerability service knows none of the 1"),
        (
            None,
            UNREACHABLE,
            0,
            "audit skipped: the vulnerability service does not answer (requests.exceptions.ConnectionError)",
        ),
        (None, "ERROR:pip_audit._cli:Could not connect to the feed", 0, "not answer (Could not connect to the feed)"),
        (None, "ValueError: a mistake of pip-audit's", 1, "a mistake of pip-audit's"),
    ],
)
def test_an_audit_fails_for_what_it_finds_and_is_skipped_without_an_answer(tmp_path, answer, stderr, code, says):
    stdout = "" if answer is None else json.dumps({"dependencies": answer})
    fails = answer is None or any(p.get("vulns") for p in answer)
    stub = f"import sys\nprint({stdout!r})\nprint({stderr!r}, file=sys.stderr)\nsys.exit({int(fails)})\n"
    (tmp_path / "pip_audit.py").write_text(stub)
    returned, said = audit(path=tmp_path)
    assert returned == code
    assert says in said
    assert ("skipped" in said) <= (len(said.splitlines()) == 1)


class Service(BaseHTTPRequestHandler):
    """A vulnerability service that knows one vulnerability, of torch."""

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["package"]
        events = [{"introduced": "0"}, {"fixed": "99"}]
        affected = [{"package": asked, "ranges": [{"type": "ECOSYSTEM", "events": events}]}]
        body = json.dumps({"vulns": [{"id": "FAKE-1", "affected": affected}]} if asked["name"] == "torch" else {}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def test_pip_audit_itself_is_understood():
    pytest.importorskip("pip_audit", reason="needs pip-audit, which make installs")
    with HTTPServer(("127.0.0.1", 0), Service) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/"
        code, said = audit("--osv-url", address)
        server.shutdown()
    assert code == 1, said
    assert said.startswith("torch 2.13.0: FAKE-1, fixed in 99\naudit: 1 known vulnerabilities in 1")
    code, said = audit("--osv-url", address)  # nobody listens any more
    assert code == 0, said
    assert said.startswith("audit skipped: the vulnerability service does not answer (")


@dataclass
class Member:
    """A file of an archive."""

    name: str
    mode: int
    content: bytes
    link: bool = False

    def faults(self):
        """What is wrong with it, in words."""
        script = self.content.startswith(b"#!")
        pickled = re.match(rb"\x80[\x02-\x05]|PK\x03\x04", self.content)  # torch.save writes a zip with a pickle in it
        found = {
            "is a link": self.link,
            "others may write it": self.mode & 0o022,
            "is executable without a shebang": self.mode & 0o111 and not script,
            "leaves the archive's folder": self.name.startswith("/") or ".." in PurePosixPath(self.name).parts,
            "is a pickle": pickled or re.search(r"\.(pkl|pickle|pt|pth|ckpt|bin|joblib)$", self.name),
            "names the folder that it was built in": f"{ROOT}/".encode() in self.content,
        }
        return [f"{self.name} {fault}" for fault, is_so in found.items() if is_so]


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """The members of the source distribution and of the wheel."""
    for module in ("build", "hatchling"):
        pytest.importorskip(module, reason=f"needs {module}, which make installs")
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    [source], [wheel] = folder.glob("*.tar.gz"), folder.glob("*.whl")
    with tarfile.open(source) as tar:
        held = [(i, tar.extractfile(i)) for i in tar.getmembers() if not i.isdir()]
        members = [Member(i.name, i.mode, file.read() if file else b"", link=not i.isfile()) for i, file in held]
    with zipfile.ZipFile(wheel) as zipped:
        modes = [(i, i.external_attr >> 16) for i in zipped.infolist()]
        return members, [Member(i.filename, mode, zipped.read(i), stat.S_ISLNK(mode)) for i, mode in modes]


def test_only_scripts_are_executable():
    done = subprocess.run(["git", "ls-files", "--stage", "-z"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    for line in done.stdout.rstrip("\0").split("\0"):
        mode, name = line.split()[0], line.split("\t")[1]
        script = mode != "120000" and (ROOT / name).read_bytes().startswith(b"#!")
        assert mode == ("100755" if script else "100644"), name


def test_what_is_shipped_is_plain_files(archives):
    for members in archives:
        assert len(members) > 200
        assert [fault for member in members for fault in member.faults()] == []


@pytest.mark.parametrize(
    ("member", "fault"),
    [
        (Member("a", 0o644, b"", link=True), "is a link"),
        (Member("a", 0o664, b""), "others may write it"),
        (Member("a", 0o755, b""), "is executable without a shebang"),
        (Member("a/../../b", 0o644, b""), "leaves the archive's folder"),
        (Member("a.pth", 0o644, b""), "is a pickle"),
        (Member("a", 0o644, b"\x80\x04\x95"), "is a pickle"),
        (Member("a", 0o644, b"PK\x03\x04"), "is a pickle"),
        (Member("a", 0o644, f"in {ROOT}/a".encode()), "names the folder that it was built in"),
    ],
)
def test_faults_of_an_archive_are_seen(member, fault):
    assert member.faults() == [f"{member.name} {fault}"]


def test_licences_and_origins_are_shipped(archives):
    held = {
        member.name: member.content.decode() for member in archives[1] if member.name.endswith(("METADATA", "LICENSE", ".md"))
    }
    [metadata] = (text for name, text in held.items() if name.endswith(".dist-info/METADATA"))
    assert {"License-Expression: MIT", "License-File: LICENSE"} <= set(metadata.splitlines())
    [licence] = (text for name, text in held.items() if name.endswith(".dist-info/licenses/LICENSE"))
    assert licence == (ROOT / "LICENSE").read_text()
    assert "SPDX-License-Identifier: CC-BY-SA-3.0" in held["xhat/data/mnist/README.md"]
    assert "python -m xhat.evaluation.train_digits" in held["xhat/networks/README.md"]


def test_the_package_names_its_licence():
    assert (ROOT / "src/xhat/__init__.py").read_text().startswith("# SPDX-License-Identifier: MIT\n")


def test_mnist_is_what_its_authors_published():
    folder = ROOT / "src/xhat/data/mnist"
    told = dict(re.findall(r"`([\w-]+-ubyte)` \| (\w{32}) ", (folder / "README.md").read_text()))
    files = {path.stem: hashlib.md5(gzip.decompress(path.read_bytes())).hexdigest() for path in folder.glob("*.gz")}
    assert len(files) == 4
    assert files == told
