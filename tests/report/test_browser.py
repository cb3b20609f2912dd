"""The page in a browser: what it draws, says and remembers, and that it works by keyboard and on a phone."""

import math
import os
import re
import shutil
from contextlib import contextmanager

import pytest
from example import LOGSNR, NASTY, OTHER, cliff, example, minimal

from xhat.report.html import sound
from xhat.report.page import render

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
WHERE = """([name, i]) => {
  const plot = document.querySelector("#chart-error .plot");
  plot.scrollIntoView({block: "end", behavior: "instant"});
  const {xaxis, yaxis} = plot._fullLayout, box = plot.getBoundingClientRect();
  const trace = plot.data.find((t) => t.name === name && t.hoverinfo === "text");
  return [box.x + xaxis._offset + xaxis.d2p(trace.x[i]), box.y + yaxis._offset + yaxis.d2p(trace.y[i])];
}"""
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
        "cliff": cliff(),
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


@pytest.fixture
def steep(browser, folder):
    """Entries far above a floor that falls to 0."""
    with opened(browser, folder / "cliff.html") as page:
        yield page


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


def errors(contents, space):
    return [e * f for c in contents.entries if c.x0_error for e, f in zip(c.x0_error.y, SPACES[space], strict=True)]


def span(page):
    return page.evaluate("document.querySelector('#chart-error .plot')._fullLayout.yaxis.range")


@pytest.mark.parametrize("space", ["v", "x0", "bits"])
def test_a_floor_that_falls_to_nothing_leaves_the_axis_to_the_entries(steep, space):
    steep.select_option("#space", space)
    shown = errors(cliff(), space)
    low, high = span(steep)
    assert low == pytest.approx(math.log10(min(shown) / 10))
    assert math.log10(max(shown)) < high < math.log10(max(shown)) + 0.6
    band = steep.locator("#chart-error .scatterlayer .js-fill").evaluate_all(
        "all => all.map(e => e.getBBox().x + e.getBBox().width)"
    )
    assert max(band) - min(band) < 1  # to the right end, as those of the entries
    note = steep.inner_text("#chart-error .note")
    assert note.startswith("The line of “floor” lies under the axis at logsnr 4 to 8")
    assert "0 or less" not in note
    steep.click("#figures-error summary")
    steep.wait_for_selector("#figures-error table")
    rows = steep.eval_on_selector_all("#figures-error tr", "rows => rows.map(r => [...r.cells].map(c => c.textContent))")
    at_most = 0.098 * SPACES[space][13]
    assert rows[0][-1] == "floor"
    assert rows[14][0] == "5"
    assert re.fullmatch(r"0, at most [\d.]+", rows[14][-1])
    assert float(rows[14][-1].split()[-1]) == pytest.approx(at_most, rel=1e-3)


def test_the_pointer_reads_a_floor_that_has_left_the_axis(steep):
    steep.select_option("#space", "x0")
    steep.mouse.move(*steep.evaluate(WHERE, [cliff().entries[0].name, 14]), steps=3)
    steep.wait_for_selector("#chart-error .hoverlayer .legend")
    assert re.search(r"floor\s+0, at most 0.098", steep.text_content("#chart-error .hoverlayer"))


def test_without_entries_the_axis_fits_what_the_floor_is_at_most(steep):
    steep.click("[data-all=hide]")
    steep.click("[data-series='floor:floor']")
    low, high = span(steep)
    upper = [u * f for u, f in zip(cliff().floors["floor"].upper.y, SPACES["v"], strict=True)]
    assert low == pytest.approx(math.log10(min(upper) / 1000))
    assert high > math.log10(max(upper))


def test_on_a_linear_axis_and_in_the_excess_entries_keep_their_room_too(steep):
    top = max(errors(cliff(), "v"))
    steep.click("[data-flag=log-error]")
    assert span(steep)[0] == 0
    assert top < span(steep)[1] < 1.6 * top
    assert steep.inner_text("#chart-error .note") == "The band of “floor” goes beyond the top at logsnr 4 to 8."
    steep.click("[data-flag=excess]")
    entry, lower = cliff().entries[1], cliff().floors["floor"].lower.y
    excess = [(e - f) * s for e, f, s in zip(entry.x0_error.y, lower, SPACES["v"], strict=True)]
    near(series(steep, "error")[entry.name]["y"], excess)
    assert max(excess) < span(steep)[1] < 1.7 * max(excess)


def test_hovering_reads_the_number_under_the_pointer(desk):
    desk.select_option("#space", "bits")
    desk.click("[data-flag=log-error]")
    entry, level = example().entries[0], 12
    desk.locator("#chart-error").scroll_into_view_if_needed()
    desk.mouse.move(*desk.evaluate(WHERE, [entry.name, level]), steps=3)
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


def test_on_a_desk_eleven_columns_fit_and_pairs_of_charts_stand_side_by_side(browser, folder, steep):
    assert len(cliff().columns) == 10
    fits = "e => [e.scrollWidth, e.clientWidth]"
    inside, room = steep.eval_on_selector("#summary .scroll", fits)
    assert inside <= room
    place = "e => { const {x, y, width, height} = e.getBoundingClientRect(); return [x, y, width, height]; }"
    loss, progress = (steep.eval_on_selector(f"#chart-{chart}", place) for chart in ("loss", "progress"))
    assert loss[1] == progress[1]
    assert loss[0] + loss[2] < progress[0]
    assert max(steep.eval_on_selector_all(".plot", "all => all.map(e => e.clientHeight)")) <= 360
    assert all(420 <= w <= 600 for w in steep.eval_on_selector_all("#samples img", "all => all.map(e => e.width)"))
    captions = "all => all.map(e => e.clientWidth - e.scrollWidth)"
    with opened(browser, folder / "page.html", **PHONE) as page:
        assert min(page.eval_on_selector_all(".times span", captions)) >= 0


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
