"""Reports in a real browser: nothing is asked of a network, all text can be read, nothing sticks out."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import planted
from vaeprune.report import Against, write_report
from vaeprune.training import Epoch, History

LEAST_CONTRAST = 4.5  # WCAG 2.2, 1.4.3
ARGUMENTS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip

# Every element that holds text itself: its colour against the nearest background that is not transparent
CONTRASTS = """() => {
  const luminance = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const numbers = text => (text.match(/[\\d.]+/g) || []).map(Number);
  const background = element => {
    for (let at = element; at; at = at.parentElement) {
      const found = numbers(getComputedStyle(at).backgroundColor);
      if (found.length === 3 || found[3] > 0) return found.slice(0, 3);
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const element of document.body.querySelectorAll('*')) {
    if (![...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim())) continue;
    if (!element.getClientRects().length || ['STYLE', 'style'].includes(element.tagName)) continue;
    const style = getComputedStyle(element);
    const colour = numbers(element instanceof SVGElement ? style.fill : style.color).slice(0, 3);
    const pair = [luminance(colour), luminance(background(element))].sort((a, b) => b - a);
    found.push([element.textContent.trim().slice(0, 40), (pair[0] + 0.05) / (pair[1] + 0.05)]);
  }
  return found;
}"""

# What sticks out of the window, unless it stands in a box of its own that can be scrolled
OVERFLOWS = """() => [...document.body.querySelectorAll('*')].filter(element => {
  const box = element.getBoundingClientRect();
  if (!box.width || (box.right <= innerWidth + 0.5 && box.left >= -0.5)) return false;
  for (let at = element.parentElement; at; at = at.parentElement)
    if (['auto', 'scroll'].includes(getComputedStyle(at).overflowX))
      return at.getBoundingClientRect().right > innerWidth + 0.5;
  return true;
}).map(element => element.outerHTML.slice(0, 90))"""


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("there is no chromium to open a page in")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=found, args=list(ARGUMENTS), env=dict(os.environ))
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def pages(cut_model, tmp_path_factory) -> dict[str, Path]:
    """A comparison with a history, vectors, three channels, and more latents than stand open."""
    folder = tmp_path_factory.mktemp("pages")
    moving = [Epoch(n, 9.0, 8.0, 1.0, (0.9, 0.0) * 3, (0.5 / n, 1.0) * 3) for n in (1, 2, 3)]
    cut_model.vae.provenance["history"] = History(tuple(moving))
    try:
        write_report(
            cut_model.vae, cut_model.sets, folder / "cut.html", name="a-rather-long-name-without-any-place-to-break-it",
            against=Against(cut_model.small, "small", cut_model.plan), analysis=cut_model.analysis,
        )  # fmt: skip
    finally:
        del cut_model.vae.provenance["history"]
    vectors = planted.dense((1,), 4, input_shape=(30,), likelihood=planted.GAUSSIAN)
    write_report(vectors, planted.rows(200, (30,)), folder / "vectors.html")
    colours = planted.dense((1,), 30, input_shape=(3, 7, 5))
    write_report(colours, planted.rows(200, (3, 7, 5)), folder / "colours.html")
    return {path.stem: path for path in folder.glob("*.html")}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cut", "vectors", "colours"])
def test_a_page_is_quiet_readable_and_within_the_window(browser, pages, name):
    asked, said = [], []
    for width in (400, 1400):
        for scheme in ("light", "dark"):
            context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
            page = context.new_page()
            page.on("request", lambda request: asked.append(request.url))
            page.on("console", lambda message: said.append(message.text))
            page.on("pageerror", lambda error: said.append(str(error)))
            page.goto(pages[name].as_uri())
            for summary in page.locator("summary").all():
                summary.click()
            contrasts = page.evaluate(CONTRASTS)
            assert len(contrasts) > 100
            assert [pair for pair in contrasts if not pair[1] >= LEAST_CONTRAST] == []
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert page.evaluate(OVERFLOWS) == []
            paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 27)"}[scheme]
            broken = "[...document.images].filter(image => !image.complete || !image.naturalWidth).length"
            assert page.evaluate(broken) == 0
            context.close()
    assert said == []
    assert {url for url in asked if not url.startswith("data:")} == {pages[name].as_uri()}


@pytest.mark.slow
def test_these_checks_can_fail(browser, tmp_path):
    bad = '<p style="color:#999">grey</p><div style="width:900px;background:#eee">wide</div>'
    (tmp_path / "bad.html").write_text(f'<body style="background:#fff">{bad}')
    page = browser.new_page(viewport={"width": 400, "height": 900})
    page.goto((tmp_path / "bad.html").as_uri())
    assert [word for word, contrast in page.evaluate(CONTRASTS) if contrast < LEAST_CONTRAST] == ["grey"]
    assert len(page.evaluate(OVERFLOWS)) == 1
    page.close()


@pytest.mark.slow
def test_print_is_light_and_shows_what_is_folded(browser, pages):
    context = browser.new_context(color_scheme="dark")
    page = context.new_page()
    page.goto(pages["colours"].as_uri())
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    folded = "[...document.querySelectorAll('details .strips')].map(e => e.getBoundingClientRect().height)"
    heights = page.evaluate(folded)
    assert len(heights) == 1
    assert min(heights) > 0
    assert page.pdf().startswith(b"%PDF")
    context.close()
