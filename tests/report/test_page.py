"""The page as a file: what it says, and that nothing in it comes from or goes to anywhere else."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files
from math import inf, nan

import pytest
from example import LOGSNR, NASTY, example, minimal

from xhat.report.contents import Column, Contents, Entry, Mark, Number
from xhat.report.html import number, sound
from xhat.report.page import SECTIONS, render

VOID = {"meta", "link", "img", "br", "path", "wbr"}
CSS = files("xhat.report").joinpath("style.css").read_text("utf-8")


class Page(HTMLParser):
    """Elements and texts of a page, whose tags must match."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.attributes, self.texts = [], [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *a) for a in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.texts.append(data)

    @property
    def text(self):
        return " ".join("".join(self.texts).split())

    def all(self, name):
        return [value for _, attribute, value in self.attributes if attribute == name]


def raw(html):
    return html.split('<script type="application/json" id="data">')[1].split("</script>")[0]


def payload(html):
    return json.loads(raw(html))


@pytest.fixture(scope="module")
def html():
    return render(example())


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


def test_tags_match_ids_are_unique_and_every_reference_has_its_target(page):
    ids = page.all("id")
    assert len(ids) == len(set(ids))
    assert {h[1:] for h in page.all("href") if h.startswith("#")} <= set(ids)
    assert set(page.all("aria-labelledby")) <= set(ids)
    assert page.tags.count("h1") == page.tags.count("main") == page.tags.count("nav") == 1


def test_nothing_is_loaded(page):
    loads = page.all("src") + page.all("href") + page.all("srcset") + page.all("action")
    assert all(value.startswith(("data:", "#")) for value in loads)
    assert "url(" not in CSS
    assert "@import" not in CSS
    assert "default-src 'none'" in "".join(page.all("content"))


def test_what_runs_are_called_is_never_markup(page, html):
    assert "b" not in page.tags
    assert sound(NASTY) in page.text
    assert "out of memory <b>here</b>" in page.text
    assert payload(html)["entries"][2]["name"] == sound(NASTY)
    assert not set("<>&") & set(raw(html))
    html.encode("utf-8")  # no lone surrogate is left
    assert "\x07" not in html


def test_title_and_config_are_escaped_too():
    nasty = Entry(NASTY, config={NASTY: NASTY}, environment={NASTY: NASTY}, failed=[NASTY])
    made = render(Contents(NASTY, NASTY, [nasty], [Column("k", NASTY, NASTY, NASTY)], notes=[NASTY]))
    assert not {"b", "x"} & set(Page(made).tags)
    assert "<b>" not in made.split("<script")[0]


def test_what_is_not_finite_is_null(html):
    entry = payload(html)["entries"][2]
    assert entry["x0_error"]["y"][5] is None
    assert entry["x0_error"]["x"] == LOGSNR
    assert payload(html)["charts"][0]["real"] is None
    assert payload(html)["floors"]["floor of MNIST"]["upper"]["y"][-1] is None


def test_equal_contents_give_equal_pages(html):
    assert render(example()) == html


def test_the_summary_marks_more_than_by_colour(page):
    assert "best: 3.27 ± 0.36" in page.text
    assert "=tie with the best: 5.01" in page.text
    assert "real images0.081300.04250" in page.text
    assert page.all("title").count("best") == 3


def test_failures_and_notes_are_told(page):
    assert "seed 1: the loss is not finite at step 1234: lower the learning rate" in page.text
    assert "1 of 21 runs failed." in page.text


def test_what_differs_is_apart_from_what_all_share(html):
    differs = Page(html[html.index('id="differs"') - 9 : html.index("<section", html.index('id="differs"'))])
    first, rest = differs.text.split("The config that all share (3 keys)")
    assert "target" in first
    assert "batch_size" not in first
    assert "batch_size128" in rest


def test_an_entry_without_config_differs_in_nothing():
    entries = [Entry("a", config={"seed": "0"}), Entry("b", config={"seed": "0"}), Entry("c")]
    assert "Nothing in the configs differs." in render(Contents("", "", entries, []))


def test_one_entry_is_compared_with_nothing():
    alone = Page(render(replace(example(1), notes=[]))).text
    assert "Config The" in alone.replace("ConfigThe", "Config The")
    assert "All 5 keys" in alone
    for said in ("What differs", "Nothing in the configs", "★", "cannot be told", "All entries", "all share"):
        assert said not in alone, said
    assert "★" in Page(render(example(2))).text


def test_times_stand_above_the_columns_as_numbers_and_other_captions_as_they_are(page):
    assert "1.000.880.75" in page.text
    assert "Above each column stands its time t." in page.text
    other = Page(render(replace(example(2), trajectory_times=["noise", "t = 0.5", "sample"]))).text
    assert "noiset = 0.5sample" in other
    assert "stands its time" not in other


def test_empty_sections_are_left_out():
    one = render(minimal())
    sections = re.findall(r'<section id="([^"]*)"', one)
    assert sections == ["summary", "training"]
    assert [chart["id"] for chart in payload(one)["charts"]] == ["loss"]
    nothing = render(Contents("empty", "", [], []))
    assert "Plotly" not in nothing.split("<script>")[-2]
    assert len(nothing) < 50_000
    Page(nothing)


def test_penalties_need_their_column_and_a_value():
    entry = Entry("a", numbers={"fid": Number(1.0), "tv": Number(nan)})
    columns = [Column("fid", "FID", ""), Column("tv", "TV", "")]
    contents = Contents("", "", [entry], columns, penalties=["tv", "unheard of"])
    assert payload(render(contents))["charts"] == []
    known = replace(entry, numbers={"fid": Number(1.0), "tv": Number(2.0)})
    assert [c["id"] for c in payload(render(replace(contents, entries=[known])))["charts"]] == ["penalty-0"]


@pytest.mark.parametrize(
    ("value", "spread", "said"),
    [
        (3.14159, 0.0123, "3.142 <small>± 0.012</small>"),
        (123.4, 12.0, "123 <small>± 12</small>"),
        (0.99, 0.0996, "0.99 <small>± 0.10</small>"),
        (-1.5, 0.25, "−1.50 <small>± 0.25</small>"),
        (3e-7, 1.2e-8, "3e-07 <small>± 1.2e-08</small>"),
        (41.271, nan, "41.27"),
        (41.271, 0.0, "41.27"),
        (0.0, nan, "0"),
        (1843200.0, nan, "1,843,200"),
        (0.08131, nan, "0.08131"),
        (2e-5, nan, "2e-05"),
        (inf, nan, "∞"),
        (-inf, 1.0, "−∞"),
    ],
)
def test_numbers_have_the_digits_that_their_spread_supports(value, spread, said):
    assert number(value, spread) == said


def test_an_unknown_number_is_said_to_be_unknown():
    assert "not known" in number(nan)
    row = render(Contents("", "", [Entry("a", numbers={"k": Number(nan, nan, Mark.NONE)})], [Column("k", "k", "")]))
    assert "not known" in row


def test_every_section_is_a_file_and_on_the_page():
    """A file without a place in the order would be shown nowhere."""
    named = {p.name.removesuffix(".py") for p in files("xhat.report.sections").iterdir() if p.name.endswith(".py")}
    assert {section.__name__ for section in SECTIONS} == named - {"__init__"}


def test_charts_stand_below_one_legend_after_what_needs_no_script(html):
    order = re.findall(r'<section id="([^"]*)"|(class="legend)', html)
    names = [a or "legend" for a, _ in order]
    assert names[:4] == ["summary", "samples", "trajectories", "legend"]
    assert names[4:] == ["levels", "training", "learned", "bound", "penalties", "differs", "environment"]


def test_refresh_works_without_javascript_and_only_while_training_runs(html):
    assert '<noscript><meta http-equiv="refresh" content="30"></noscript>' in render(replace(minimal(), refresh=30))
    assert 'http-equiv="refresh"' not in html.split("<body>")[0]


def luminance(color):
    parts = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a, b):
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_colours_have_the_contrast_that_wcag_asks_for(theme):
    colors = {m[1]: m.group(2, 3)[theme] for m in re.finditer(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\)", CSS)}
    for name in ("text", "muted", "accent", "warn"):
        for below in ("bg", "panel", "warn-bg", "best"):
            assert contrast(colors[name], colors[below]) >= 4.5, (name, below)
    for name in ("control", "axis", "floor", *(f"c{i}" for i in range(7))):
        assert contrast(colors[name], colors["bg"]) >= 3, name
