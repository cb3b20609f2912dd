"""What README and docs show: their code runs, their commands are accepted, and their figures stand in docs/results.

A block of a page (a paragraph, a list, a table) with a decimal number or a percentage says where it is from in a comment
before it: `<!-- results: NAME ... -->`, files of docs/results written by benchmarks/record.py; `<!-- derived: TEST -->`,
the test that computes it; `<!-- settings: WHERE -->`, chosen, not measured; `<!-- published: WHERE -->`, somebody else's.
"""

import re
import shlex
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml

import xhat
from xhat.cli import COMMANDS, main
from xhat.commands.train import read
from xhat.config.build import build_denoiser, build_objective
from xhat.data.shape import DataShape
from xhat.diffusion.gaussians import transition

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"
PAGES = {path.name: path.read_text() for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
UNMEASURED = {"derivation.md", "architecture.md"}  # the first names a test for each of its numbers
FENCE = re.compile(r"^```(\w*)\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
SOURCE = re.compile(r"<!-- (results|derived|settings|published): (.+) -->")
VERSION = re.compile(r"Python 3\.\d+|CC BY-SA 3\.0")
NUMBER = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?(?: ?%)?")


def code(page, language):
    """The fenced blocks of a page in a language."""
    return [text for found, text in FENCE.findall(PAGES[page]) if found == language]


def commands():
    """Every command of the console blocks, (page, words); continued lines are one, and "data: ..." is what a command prints."""
    for page in PAGES:
        for block in code(page, "console"):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line.removeprefix("$ "), comments=True)
                if words and not words[0].endswith(":"):
                    yield page, words


def blocks(page):
    """(source or None, text without code) of each paragraph, list or table of a page."""
    source, text = None, FENCE.sub("", PAGES[page])
    for block in re.split(r"\n\s*\n", text):
        if found := SOURCE.fullmatch(block.strip()):
            source = found
            continue
        yield source, re.sub(r"`[^`]*`|\]\([^)]*\)", " ", block)
        source = None


def figures(text):
    """The numbers that were measured or computed: those with a decimal point, an exponent or a percent sign."""
    return [n for n in NUMBER.findall(VERSION.sub("", text)) if re.search(r"[.e%]", n)]


def numbers(text):
    """All numbers of an output."""
    return [float(n.rstrip(" %").replace(",", "")) for n in NUMBER.findall(text) if n.rstrip(" %,").strip(",")]


def stands(figure, known):
    """Whether a figure is one of the numbers, rounded as the figure is; a percentage may be printed as a share."""
    bare = figure.rstrip(" %").replace(",", "")
    if "e" in bare:
        digits = len(bare.split("e")[0].replace(".", "")) - 1
        return any(float(f"{value:.{digits}e}") == float(bare) for value in known)
    places = len(bare.partition(".")[2])
    also = [100 * value for value in known] if figure.endswith("%") else []
    return any(abs(value - float(bare)) <= 0.5 * 10**-places + 1e-9 for value in (*known, *also))


@cache
def result(name):
    """Header lines by their kind, and the output, of a stored result."""
    head, _, output = (RESULTS / f"{name}.txt").read_text().partition("\n\n")
    lines = head.splitlines()
    kinds = {
        key: [line.removeprefix(key).strip() for line in lines if line.startswith(key)]
        for key in ("$", "after:", "machine:", "date:")
    }
    return kinds, output


def quoted():
    """(page, names, text) of each block that quotes results."""
    return [
        (page, source[2].split(), text)
        for page in PAGES
        for source, text in blocks(page)
        if source is not None and source[1] == "results"
    ]


@pytest.fixture
def reader(tmp_path, monkeypatch, mnist_run):
    """A folder as a reader has it: the demo's run, the files that the pages show, a preset of one's own."""
    (tmp_path / "runs").mkdir()
    started = {words[words.index("--init") + 1] for _, words in commands() if "--init" in words}
    if PIPELINE in started:
        monkeypatch.syspath_prepend(str(ROOT / "tests" / "pipelines"))
        import tiny

        tiny.stable_diffusion().save_pretrained(tmp_path / PIPELINE)
    for run in {"runs/demo"} | started - {PIPELINE}:
        (tmp_path / run).symlink_to(mnist_run)
    for page in PAGES:
        for block in code(page, "yaml"):
            (tmp_path / block.splitlines()[0].removeprefix("# ").split(":")[0]).write_text(block)
        for block in code(page, "python"):
            if (first := block.splitlines()[0]).startswith("# ") and first.endswith(".py"):
                (tmp_path / first.removeprefix("# ")).write_text(block)
    (tmp_path / "my.yaml").write_text((ROOT / "src" / "xhat" / "config" / "presets" / "mnist.yaml").read_text())
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    return tmp_path


@pytest.mark.parametrize("page", [page for page in PAGES if code(page, "python")])
def test_the_python_of_a_page_runs_in_order_from_nothing(page, reader):
    for where, words in commands():
        if where == page and words[1] == "export" and (reader / words[2]).exists():
            assert main(words[1:]) == 0
    scope = {"__name__": "__main__"}
    for block in code(page, "python"):
        exec(compile(shortened(block), page, "exec"), scope)


PIPELINE = "sd15"
"""What the pages call the folder of a pretrained pipeline."""


def shortened(block):
    """A block whose training is two steps, where it says `steps = N`."""
    return re.sub(r"^steps = \d+", "steps = 2", block, flags=re.MULTILINE)


def test_readme_and_start_page_show_the_same_training():
    first, again = (code(page, "python")[0] for page in ("README.md", "index.md"))
    assert first == again
    assert "\nsteps = 2 " in shortened(first)


def test_every_command_is_accepted(reader, capsys):
    for page, words in commands():
        accepted(page, words, capsys)


def accepted(page, words, capsys):
    """A command's files are there and its options exist; a training's whole config is built."""
    where = f"{page}: {' '.join(words)}"
    if words[0] == "make":
        assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text(), where
    elif words[0] in ("python", "pytest"):
        assert (ROOT / words[1]).exists(), where
    elif words[0] == "torchrun":
        accepted(page, ["xhat", *words[words.index("--") + 1 :]], capsys)
    elif words[0] == "xhat":
        assert words[1] in COMMANDS, where
        if words[1] == "train" and "--resume" not in words:
            config = read([*words[2:], "--run", "new"]).config  # a reader's folder holds no run yet
            latents = DataShape.of((4, 8, 8), None, range=None, conditions=("encoder_hidden_states",))
            images = DataShape(1, 28, 10 if config.labels else None)
            shape = latents if config.init == PIPELINE else DataShape.of((5,)) if config.network == "mlp" else images
            build_objective(config, build_denoiser(config, shape))
        known = options_of(words[1], capsys)
        assert all(w in known or w.startswith(("--terms.", "--watch.")) for w in words if w.startswith("--")), where
        assert all((ROOT / w).exists() for w in words if w.startswith("studies/")), where
    else:
        assert words[0] in ("pip", ".ci/run"), where


KNOWN: dict[str, set[str]] = {}


def options_of(command, capsys):
    """What --help of a command names."""
    if command not in KNOWN:
        with pytest.raises(SystemExit):
            main([command, "--help"])
        KNOWN[command] = set(re.findall(r"--[\w.]+", capsys.readouterr().out))
    return KNOWN[command]


def test_a_file_that_a_page_shows_is_used_by_a_command():
    shown = {block.splitlines()[0].removeprefix("# ").split(":")[0] for page in PAGES for block in code(page, "yaml")}
    used = {w for _, words in commands() for w in words if w.endswith(".yaml") and "/" not in w}
    assert shown <= used <= shown | {"my.yaml"}
    assert all(yaml.safe_load(block) for page in PAGES for block in code(page, "yaml"))


@pytest.mark.parametrize("page", sorted(set(PAGES) - UNMEASURED))
def test_every_figure_has_a_source(page):
    for source, text in blocks(page):
        assert source is not None or not figures(text), f"{figures(text)} of {page} have no source: {text[:200]}"


def test_quoted_figures_stand_in_the_stored_results():
    for page, names, text in quoted():
        known = [value for name in names for value in numbers(result(name)[1])]
        wrong = [figure for figure in figures(text) if not stands(figure, known)]
        assert not wrong, f"{page}: {wrong} are not in {names}: {text[:200]}"


def test_a_page_names_the_command_and_the_machine_of_what_it_quotes():
    for page, names, _ in quoted():
        for name in names:
            kinds, _ = result(name)
            command, machine = kinds["$"][0].split(" --")[0], kinds["machine:"][0]
            assert command in PAGES[page], f"{page} quotes {name} without `{command}`"
            assert machine in PAGES[page], f"{page} quotes {name} without its machine: {machine}"


def test_stored_results_are_of_commands_that_exist_and_are_quoted(reader, capsys):
    stored = {path.stem for path in RESULTS.glob("*.txt")}
    assert stored == {name for _, names, _ in quoted() for name in names}
    for name in stored:
        kinds, output = result(name)
        assert len(kinds["$"]) == len(kinds["machine:"]) == len(kinds["date:"]) == 1, name
        assert output.strip(), name
        assert str(Path.home()) not in output, name
        for command in (*kinds["after:"], *kinds["$"]):
            accepted(name, shlex.split(command), capsys)


@pytest.mark.skipif(shutil.which("make") is None, reason="this machine has no make")
def test_make_studies_remakes_what_the_pages_on_objectives_quote():
    planned = subprocess.run(["make", "-n", "-B", "studies"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    made = dict(re.findall(r"record\.py --into runs/studies (\S+) (?:--after .*)?-- (.*)", planned))
    told = {name for page, names, _ in quoted() if page in ("objectives.md", "created-image.md") for name in names}
    assert told <= set(made)
    for name in told:  # a picture goes elsewhere
        assert made[name].split(" --picture")[0] == result(name)[0]["$"][0].split(" --picture")[0], name


def test_derived_figures_name_a_test_that_exists():
    for page in PAGES:
        for source, text in blocks(page):
            if source is not None and source[1] == "derived":
                file, _, name = source[2].partition("::")
                assert f"def {name}(" in (ROOT / file).read_text(), f"{page}: no {source[2]}: {text[:80]}"


def test_what_of_a_steps_noise_is_unknown():
    schedule = xhat.Discrete.linear_beta(1000)
    t = torch.tensor([2, 10, 500], dtype=torch.float64) / 1000
    beta = transition(schedule, t, t - 1 / 1000).forward_variance
    shares = (xhat.Increment.irreducible(schedule, t) / beta).tolist()
    assert [f"{100 * share:.0f} %" for share in shares] == ["45 %", "85 %", "99 %"]
    assert all(share in PAGES["objectives.md"] for share in ("45 %", "85 %", "99 %"))
    all_steps = torch.arange(1, 1001, dtype=torch.float64) / 1000
    assert round(float(xhat.Increment.irreducible(schedule, all_steps).mean()), 4) == 0.0099  # the floor of its raw loss


def test_weights_of_plain_losses():
    schedule = xhat.Discrete.linear_beta(1000)
    levels = torch.tensor([8.0, -8.0], dtype=torch.float64)
    steps = schedule.on_grid(schedule.t_of(levels))  # a step's noise is that of a grid's step
    for target, cells in (
        (xhat.targets.SCALED_NOISE, "3e-4 | 1"),
        (xhat.targets.STEP_NOISE, "5e-5 | 3e-4"),
        (xhat.X0, "3e-4 | 3e3"),
    ):
        if target is xhat.targets.STEP_NOISE:
            found = (target.gain(schedule, steps) / xhat.NOISE.gain(schedule, steps)).tolist()
        else:
            found = (target.gain_at(schedule, levels) / xhat.NOISE.gain_at(schedule, levels)).tolist()
        assert [float(f"{value:.0e}") for value in found] == [float(cell) for cell in cells.split(" | ")]
        assert f"| {cells} |" in PAGES["objectives.md"]


def test_the_check_sees_a_changed_figure():
    known = numbers("bound 2.87±0.03*  read 0.899  118 s  4e-05")
    assert all(stands(figure, known) for figure in ("2.87", "2.9", "0.90", "89.9 %", "90 %", "4e-5"))
    assert not any(stands(figure, known) for figure in ("2.86", "3.0", "89.8 %", "4.1e-5"))
    assert figures("a `0.5` of 3 runs, 0.25, 12 % and 1e-3, in 2020") == ["`0.5`"[1:-1], "0.25", "12 %", "1e-3"]


def test_the_recorder_stores_what_a_command_prints(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import record

    monkeypatch.setattr(record, "RESULTS", tmp_path)
    script = tmp_path / "prints.py"
    script.write_text(f"print('{record.ROOT}/runs/x 1.25   ')")
    monkeypatch.setattr(sys, "argv", ["record.py", "own", "--after", "xhat train mnist --run r", "--", "python", str(script)])
    record.main()
    lines = (tmp_path / "own.txt").read_text().splitlines()
    assert lines[0] == "after: xhat train mnist --run r"
    assert lines[1].startswith("$ python ")
    assert lines[2].startswith("machine: ")
    assert lines[3].startswith("date: ")
    assert lines[4:] == ["", "runs/x 1.25"]
    script.write_text("raise SystemExit(3)")
    monkeypatch.setattr(sys, "argv", ["record.py", "none", "--", "python", str(script)])
    with pytest.raises(SystemExit, match="ended with 3"):
        record.main()
    assert not (tmp_path / "none.txt").exists()


def slug(heading):
    """The anchor of a heading; None where the site and the code host would differ, over a run of blanks."""
    plain = re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).strip()
    return None if "  " in plain else plain.replace(" ", "-")


@pytest.mark.parametrize("page", PAGES)
def test_files_that_a_page_names_exist(page):
    for path in re.findall(r"`((?:tests|benchmarks|studies)/[\w/.-]+\.\w+)", PAGES[page]):
        assert (ROOT / path).exists() or (ROOT / "src" / "xhat" / path).exists(), f"{page}: {path}"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_a_heading(page):
    folder = ROOT if page == "README.md" else ROOT / "docs"
    for target in re.findall(r"\]\(([^)]+)\)", FENCE.sub("", PAGES[page])):
        if target.startswith("http"):
            continue
        name, _, anchor = target.partition("#")
        file = folder / name if name else folder / page
        assert file.exists(), f"{page}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            assert anchor in map(slug, headings), f"{page}: {target}"


def test_start_and_readme_ask_the_same_questions():
    rows = [
        re.findall(r"^\| .*\]\((?!http)(?:docs/)?(.*?)\).*$", PAGES[page], re.MULTILINE) for page in ("README.md", "index.md")
    ]
    assert rows[0] == rows[1]
    assert len(rows[0]) >= 15
