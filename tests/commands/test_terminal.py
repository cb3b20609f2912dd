"""What is printed: in any encoding, to any width, to a reader that may have gone."""

import io
import os
import re
import sys

import pytest

from helpers import process, xhat
from xhat.cli import main
from xhat.commands.tables import new_table, number_column, show_table, text_column
from xhat.commands.terminal import NOBODY_READS, console, discard, make_printable, note, say


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
def test_signs_that_an_encoding_lacks_are_replaced(encoding, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors=e) for e in ("strict", "backslashreplace"))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    assert main(["inspect", "ddpm"]) == 0
    assert main(["train", "tränieren±.yaml", "--run", "r"]) == 2
    printed, said = (stream.buffer.getvalue().decode(encoding) for stream in (out, err))
    assert ("▏" in printed) == (encoding == "utf-8")
    assert "tränieren±.yaml" in said or (encoding == "ascii" and r"tr\xe4nieren+-.yaml" in said)


def test_an_encoding_whose_errors_were_chosen_is_left_alone(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="ignore")
    monkeypatch.setattr(sys, "stdout", stream)
    make_printable()
    assert stream.errors == "ignore"


@pytest.fixture
def unread():
    """A pipe whose reader is gone, as a text stream."""
    reader, writer = os.pipe()
    os.close(reader)
    stream = os.fdopen(writer, "w", encoding="utf-8")
    yield stream
    stream.close()  # fails where the pipe was not discarded


@pytest.mark.parametrize("command", ["--help", "--version", "inspect ddpm"])
def test_a_reader_that_goes_away_ends_a_command_quietly(command, unread, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdout", unread)
    assert main(command.split()) == NOBODY_READS
    print("more", flush=True)  # as the interpreter does when it ends
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_nothing_is_said_when_the_interpreter_ends():
    job = process("--help")
    job.stdout.close()
    assert (job.stderr.read(), job.wait(timeout=120)) == ("", NOBODY_READS)


def test_a_message_without_a_reader_does_not_end_a_command(unread, monkeypatch):
    """xhat ... 2> >(true): notes, warnings and errors of use."""
    monkeypatch.setattr(sys, "stderr", unread)
    note("nobody reads this")
    say("nor this")
    assert main(["trane"]) == 2


def test_rich_raises_what_the_command_line_handles(unread, monkeypatch):
    monkeypatch.setattr(sys, "stdout", unread)
    with pytest.raises(BrokenPipeError):
        console().print("x" * 100000)
    discard(unread)


def shown(table, width, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    show_table(console(), table)
    return capsys.readouterr().out


def test_a_wide_table_is_shown_in_parts_with_every_number(capsys, monkeypatch):
    table = new_table(text_column("name", at_least=8), *(number_column(f"column\n{c}") for c in "abcdef"), gap=1)
    cells = [[f"{1.0625 * (row + 1) * 10**column:.5g}" for column in range(6)] for row in range(3)]
    for i, row in enumerate(cells):
        table.add_row(f"a-name-of-many-letters-{'xyz'[i]}", *row)
    for width in (24, 40, 80):
        out = shown(table, width, capsys, monkeypatch)
        assert sorted(word for row in cells for word in row) == sorted(re.findall(r"\d\S*", out))
        assert max(map(len, out.splitlines())) <= width
        assert "…" not in out
        assert out.count("name\n") + out.count("name ") >= 1


def test_bars_stay_beside_their_numbers(capsys, monkeypatch):
    table = new_table(number_column("key"), *map(number_column, ("one", "two", "")), gap=1)
    table.add_row("1", "2" * 18, "3" * 18, "#####")
    out = shown(table, 30, capsys, monkeypatch)
    assert re.search(r"3{18} #{5}", out)


@pytest.mark.parametrize("command", [("inspect", "edm"), ("inspect", "ddpm", "edm"), ("evaluate", "RUN"), ("gradients", "RUN")])
def test_no_number_is_cut_at_40_columns(command, tiny_run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    more = {"evaluate": ("--n", 4, "--images", 10), "gradients": ("--n", 4, "--chain", 2, "--picture", "p.png")}
    found = {}
    for width in (400, 80, 40):
        monkeypatch.setenv("COLUMNS", str(width))
        arguments = (tiny_run if word == "RUN" else word for word in command)
        code, out, _ = xhat(*arguments, *more.get(command[0], ()), capsys=capsys)
        assert code == 0
        assert "…" not in out
        found[width] = set(re.findall(r"(?<![\w.])-?\d+\.\d+(?:e-?\d+)?(?![\w.])", out))
    assert found[400] <= found[80] | found[40]
    assert found[400] - found[40] == set()


def test_a_line_about_a_file_is_one_line_whatever_its_name_is(tmp_path, capsys):
    """A missing file, a note: no name breaks the line, or colours the terminal."""
    name = "a\nb\x1b[31m.yaml"
    code, _, err = xhat("train", tmp_path / name, "--run", tmp_path / "r", capsys=capsys)
    assert (code, err.count("\n"), "\x1b" in err) == (2, 1, False)
    assert r"a\nb\x1b[31m.yaml does not exist" in err
    note(f"{name} stays")
    assert capsys.readouterr().err == "xhat: note: a\\nb\\x1b[31m.yaml stays\n"
