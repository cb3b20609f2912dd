"""The page in a browser: what it draws, says and remembers, and that it works by keyboard and on a phone."""

import math
import os
import re
import shutil
from contextlib import contextmanager

import pytest
from example import LOGSNR, NASTY, OTHER, example, minimal

from xhat.report.page import render
from xhat.report.tables import sound

pytestmark = pytest.mark.browser
QUIET = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update"
PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
DESK = {"viewport": {"width": 1200, "height": 800}}
WIDTHS = "[document.documentElement.scrollWidth, innerWidth]"
SNR = [math.exp(level) for level in LOGSNR]
SPACES = {
    "x0": [1.0] * len(SNR),
    "noise": SNR,
    "v": [1 + s for s in SNR],
    "flow": [(1 + s**0.5) ** 2 for s in SNR],
    "bits": [s / (2 * math.log(2)) for s in SNR],
}
SERIES = """(id) => Object.fromEntries(document.querySelector(`#chart-${id} .plot`).data
  .filter((t) => t.hoverinfo === "text").map((t) => [t.name, {x: t.x, y: t.y}]))"""


@pytest.fixture(scope="module")
def browser():
    """Debian's Chromium, driven by Playwright, which has none of its own here."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        assert not os.environ.get("CI"), "CI must have Chromium: see .ci/run"
        pytest.skip("needs Chromium: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=found, args=[*QUIET.split(), "--disable-sync"])
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pages as files."""
    made = tmp_path_factory.mktemp("pages")
    for name, contents in {
        "page": example(),
        "many": example(14),
        "minimal": minimal(),
        "live": example(3, refresh=60),
    }.items():
        (made / f"{name}.html").write_text(render(contents), encoding="utf-8")
    return made


@contextmanager
def opened(browser, path, clock=False, **options):
    """A page with all its charts, which must neither complain nor ask for anything but itself."""
    context = browser.new_context(**(DESK | options))
    page = context.new_page()
    troubles = []
    page.on("console", lambda message: troubles.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("request", lambda r: r.url.startswith("data:") or r.url == path.as_uri() or troubles.append(r.url[:200]))
    if clock:
        page.clock.install()  # hours pass when the test says so
    page.goto(path.as_uri())
    if options.get("java_script_enabled", True):
        page.wait_for_selector("html[data-ready=true]")
    yield page
    context.close()
    assert troubles == []


@pytest.fixture(scope="module")
def desk(browser, folder):
    """One page for the tests that put back what they change."""
    with opened(browser, folder / "page.html") as page:
        yield page


def series(page, chart):
    return page.evaluate(SERIES, chart)


def charts(page):
    return [i.removeprefix("chart-") for i in page.eval_on_selector_all(".chart", "all => all.map(c => c.id)")]


def until(page, expression):
    for _ in range(500):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(20)
    pytest.fail(f"still not: {expression}")


def near(measured, expected):
    assert len(measured) == len(expected)
    for a, b in zip(measured, expected, strict=True):
        assert (a is None) == math.isnan(b)
        assert a is None or a == pytest.approx(b, rel=1e-6, abs=1e-9)  # the page has eight digits


def test_every_chart_draws_every_entry_that_has_something_to_draw(desk):
    assert charts(desk) == [
        "error",
        "loss",
        "progress",
        "weighting",
        "density",
        "bound",
        "bound_levels",
        "penalty-0",
        "penalty-1",
    ]
    for chart in charts(desk):
        assert len(series(desk, chart)) == 6 + 2 * (chart == "error"), chart
        kind = ".point" if chart.startswith("penalty") else ".js-line"
        drawn = desk.eval_on_selector_all(
            f"#chart-{chart} .scatterlayer path{kind}", "p => p.filter(e => e.getAttribute('d').length > 5)"
        )
        assert len(drawn) >= 6, chart


def test_the_spaces_and_the_excess_are_those_of_the_formulas(desk):
    entry, floor = example().entries[1], example().floors["floor of MNIST"]
    for space, factors in SPACES.items():
        desk.select_option("#space", space)
        near(series(desk, "error")[entry.name]["y"], [e * f for e, f in zip(entry.x0_error.y, factors, strict=True)])
        near(series(desk, "error")["floor of MNIST"]["y"], [e * f for e, f in zip(floor.lower.y, factors, strict=True)])
    desk.click("[data-flag=excess]")
    excess = [(e - f) * s for e, f, s in zip(entry.x0_error.y, floor.lower.y, SPACES["bits"], strict=True)]
    near(series(desk, "error")[entry.name]["y"], excess)
    known_to = [(u - f) * s for u, f, s in zip(floor.upper.y, floor.lower.y, SPACES["bits"], strict=True)]
    near(series(desk, "error")["floor of MNIST: how far it is known"]["y"], known_to)
    edm, other = example().entries[5], example().floors[OTHER].lower.y  # known half-way between the levels of the entry
    excess = [(e - (a + b) / 2) * s for e, a, b, s in zip(edm.x0_error.y, other, other[1:], SPACES["bits"], strict=False)]
    near(series(desk, "error")[edm.name]["y"], [*excess, math.nan])
    assert desk.inner_text("#chart-error .note") == "No floor is known for flow, logit-normal."
    assert desk.inner_text("#chart-error figcaption") == "excess over the floor: bits/dim per unit logsnr"
    desk.click("[data-flag=excess]")


def test_hovering_reads_the_number_under_the_pointer(desk):
    desk.select_option("#space", "bits")
    desk.click("[data-flag=log-error]")
    entry, level = example().entries[0], 12
    desk.locator("#chart-error").scroll_into_view_if_needed()
    where = """([name, i]) => {
      const plot = document.querySelector("#chart-error .plot"), box = plot.getBoundingClientRect();
      const {xaxis, yaxis} = plot._fullLayout, trace = plot.data.find((t) => t.name === name && t.hoverinfo === "text");
      return [box.x + xaxis._offset + xaxis.l2p(trace.x[i]), box.y + yaxis._offset + yaxis.l2p(trace.y[i])];
    }"""
    desk.mouse.move(*desk.evaluate(where, [entry.name, level]), steps=3)
    desk.wait_for_selector("#chart-error .hoverlayer .legend")
    said = desk.text_content("#chart-error .hoverlayer")
    value, spread = re.search(rf"{re.escape(entry.name)}\s+(\S+) ± ([\d.]+)", said).groups()
    bits = SPACES["bits"][level]
    assert float(value) == pytest.approx(entry.x0_error.y[level] * bits, rel=1e-3)
    assert float(spread) == pytest.approx(entry.x0_error.spread[level] * bits, rel=0.05)
    assert "logsnr 4" in said
    assert sound(NASTY) in said
    desk.mouse.move(0, 0)
    desk.click("[data-flag=log-error]")


def test_a_series_goes_and_comes_by_keyboard_in_every_chart(desk):
    (chip := desk.get_by_role("button", name="EDM", exact=True)).focus()
    desk.keyboard.press("Space")
    assert chip.get_attribute("aria-pressed") == "false"
    assert not any("EDM" in series(desk, chart) for chart in charts(desk))
    assert all("flow, logit-normal" in series(desk, chart) for chart in charts(desk))
    desk.keyboard.press("Enter")
    assert chip.get_attribute("aria-pressed") == "true"
    assert all("EDM" in series(desk, chart) for chart in charts(desk))
    assert desk.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_none_and_all(desk):
    desk.click("[data-all=hide]")
    assert all(series(desk, chart) == {} for chart in charts(desk))
    assert "all its entries are hidden" in desk.inner_text("#chart-loss .note")
    desk.click("[data-all=show]")
    assert len(series(desk, "loss")) == 6


def test_an_axis_is_logarithmic_when_its_button_is_pressed(desk):
    kind = "id => document.querySelector(`#chart-${id} .plot`)._fullLayout.yaxis.type"
    for flag, chart in [
        ("log-error", "error"),
        ("log-training", "loss"),
        ("log-learned", "density"),
        ("log-penalties", "penalty-0"),
    ]:
        button = desk.locator(f"[data-flag={flag}]")
        for _ in range(2):
            button.click()
            assert desk.evaluate(kind, chart) == ("log" if button.get_attribute("aria-pressed") == "true" else "linear")


def test_a_zoom_by_dragging_and_back(desk):
    span = "() => { const [a, b] = document.querySelector('#chart-density .plot')._fullLayout.xaxis.range; return b - a; }"
    whole = desk.evaluate(span)
    desk.locator("#chart-density .plot").scroll_into_view_if_needed()
    box = desk.locator("#chart-density .plot .drag.nsewdrag").bounding_box()
    desk.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 0.3 * box["height"])
    desk.mouse.down()
    desk.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + 0.7 * box["height"], steps=4)
    desk.mouse.up()
    until(desk, f"({span})() < {0.5 * whole}")
    desk.click("[data-reset=density]")
    until(desk, f"Math.abs(({span})() - {whole}) < 1e-6")


def test_the_figures_of_a_chart_are_there_as_a_table(desk):
    desk.locator("#figures-bound summary").focus()
    desk.keyboard.press("Enter")
    desk.wait_for_selector("#figures-bound table")
    rows = desk.eval_on_selector_all("#figures-bound tr", "rows => rows.map(r => [...r.cells].map(c => c.textContent))")
    name, bound = example().entries[0].name, example().entries[0].bound
    assert rows[0][1] == name
    assert [float(row[0]) for row in rows[1:]] == bound.x
    assert [float(row[1]) for row in rows[1:]] == pytest.approx(bound.y, rel=1e-3)
    desk.click("#figures-bound summary")


def test_dark_and_light_follow_the_system_and_the_button(desk):
    look = """() => [getComputedStyle(document.body).backgroundColor,
      ...[...document.querySelectorAll(".plot")].map((plot) => plot.data.find((t) => t.hoverinfo === "text").marker.color)]"""
    light = desk.evaluate(look)
    desk.emulate_media(color_scheme="dark")
    until(desk, "document.getElementById('theme').ariaPressed === 'true'")
    dark = desk.evaluate(look)
    assert all(a != b for a, b in zip(light, dark, strict=True))
    desk.click("#theme")
    assert desk.evaluate(look) == light
    desk.emulate_media(color_scheme="light")
    desk.click("#theme")
    assert desk.evaluate(look) == dark
    desk.click("#theme")


def test_a_phone_never_scrolls_sideways_and_its_buttons_are_large_enough(browser, folder):
    with opened(browser, folder / "many.html", **PHONE) as page:
        assert page.evaluate(WIDTHS) == [360, 360]
        page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")
        page.wait_for_selector("#figures-error table")
        assert page.evaluate(WIDTHS) == [360, 360]
        heights = page.eval_on_selector_all(
            "button, select, summary, nav a", "all => all.map(e => e.getBoundingClientRect().height)"
        )
        assert min(heights) >= 40
        widths = page.eval_on_selector_all(".plot .main-svg", "all => all.map(e => e.getBoundingClientRect().width)")
        assert max(widths) <= 360
        assert page.get_attribute("[data-flag=zoom]", "aria-pressed") == "false"  # a finger scrolls the page


def test_a_refresh_keeps_what_the_reader_chose_and_can_be_paused(browser, folder):
    with opened(browser, folder / "live.html", clock=True) as page:
        assert "refreshes every 60 s" in page.inner_text(".live")
        page.get_by_role("button", name="v, min-SNR 5").click()
        page.select_option("#space", "bits")
        page.click("[data-flag=log-training]")
        page.click("#columns summary")
        page.evaluate("scrollTo({top: 1500, behavior: 'instant'}); window.stays = true")
        with page.expect_navigation():
            page.clock.fast_forward(61_000)
        page.wait_for_selector("html[data-ready=true]")
        assert not page.evaluate("window.stays")
        assert page.evaluate("scrollY") == 1500
        assert page.get_by_role("button", name="v, min-SNR 5").get_attribute("aria-pressed") == "false"
        assert "v, min-SNR 5" not in series(page, "error")
        assert page.input_value("#space") == "bits"
        assert page.get_attribute("[data-flag=log-training]", "aria-pressed") == "false"
        assert page.evaluate("document.getElementById('columns').open")
        page.click("[data-flag=paused]")
        page.evaluate("window.stays = true")
        page.clock.fast_forward(200_000)
        assert page.evaluate("window.stays")


def test_without_javascript_tables_and_pictures_are_there(browser, folder):
    with opened(browser, folder / "page.html", java_script_enabled=False) as page:
        assert page.is_visible("noscript .warning")
        assert page.is_visible("#summary table")
        assert page.is_visible("#samples img >> nth=0")
        assert page.locator(".chart, .legend, .controls").locator("visible=true").count() == 0


def test_next_to_nothing_is_drawn_without_complaint(browser, folder):
    with opened(browser, folder / "minimal.html", **PHONE) as page:
        assert series(page, "loss")["only"]["y"] == [3, None]
        assert page.evaluate(WIDTHS) == [360, 360]
