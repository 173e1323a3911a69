"""The explorer in a real browser: what it shows is what the models decode, and nothing comes from elsewhere."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx_pairs import CONSTANTS, write_pair
from PIL import Image
from running import serving

api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium to open the page in"),
]
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PIXELS = """id => { const c = document.getElementById(id);
    return [c.width, c.height, [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]]; }"""
# the page draws by Math.random; its draws must be the same in every run
SEEDED = "let seed = 1; Math.random = () => (seed = (seed * 16807) % 2147483647) / 2147483647;"
TOKEN = "a-token-of-enough-characters"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium):
    """Open a page of a service; at the end nothing may have been said on its console or asked of anybody else."""
    contexts, said, asked, own = [], [], [], []

    def open_page(url: str, width: int = 1400, scheme: str = "light", drawn: bool = True) -> Any:
        own.append(url.removesuffix("docs"))
        context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.add_init_script(SEEDED)
        page.goto(url)
        if drawn:
            page.wait_for_selector("body[data-drawn]")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert said == []
    assert [url for url in asked if not url.startswith((*own, "blob:"))] == []


def grey(page, name: str) -> Any:
    """The grey values of a canvas, which must be grey and opaque."""
    width, height, flat = page.evaluate(PIXELS, name)
    pixels = np.array(flat, np.uint8).reshape(height, width, 4)
    assert (pixels[..., 3] == 255).all()
    assert (pixels[..., :1] == pixels[..., :3]).all()
    return pixels[..., 0].astype(int)


def drawing(page, act) -> None:
    """Do something, and wait until what it asked for is drawn."""
    before = page.locator("body").get_attribute("data-drawn")
    act()
    page.wait_for_selector(f'body:not([data-drawn="{before}"])')


def z_of(page, size: int) -> Any:
    """z as the sliders say it."""
    return np.array([[float(page.locator(f"#latent-{i} + output").text_content()) for i in range(size)]])


def move(page, number: int, value: float) -> None:
    page.locator(f"#latent-{number}").evaluate(
        "(e, v) => { e.value = v; e.dispatchEvent(new Event('input', { bubbles: true })); }", value
    )


def as_grey(x_hat: Any) -> Any:
    return np.round(255 * x_hat).astype(int)


def test_a_slider_moves_both_models_to_what_python_decodes(service, small, original, opened):
    page = opened(service.url)
    for number, value in ((0, 1.5), (3, -2.25), (5, 0.75)):
        drawing(page, lambda number=number, value=value: move(page, number, value))
    z = np.array([[1.5, CONSTANTS[1], 0, -2.25, CONSTANTS[4], 0.75]])
    np.testing.assert_allclose(z_of(page, 6), z, atol=0.005)
    shrunk, whole = small.decode(z[:, [0, 2, 3, 5]])[0, 0], original.decode(z)[0, 0]
    assert np.abs(grey(page, "shrunk") - as_grey(shrunk)).max() <= 1
    assert np.abs(grey(page, "original") - as_grey(whole)).max() <= 1
    expected = np.clip(as_grey(0.5 + 10 * (shrunk - whole) / 2), 0, 255)
    assert np.abs(grey(page, "difference") - expected).max() <= 1
    most = np.abs(shrunk - whole).max()
    assert page.locator("#amount").text_content() == f"difference × 10, at most {most:.2g}"


def test_an_idle_latent_of_the_original_moves_the_original_alone(service, opened):
    page = opened(service.url)
    assert page.locator(".idle").count() == 2
    assert page.locator("#idle-sliders label").all_text_contents() == ["idle latent 1", "idle latent 4"]
    before = grey(page, "shrunk"), grey(page, "original")
    drawing(page, lambda: move(page, 1, 2.5))
    np.testing.assert_array_equal(grey(page, "shrunk"), before[0])
    np.testing.assert_array_equal(grey(page, "original"), before[1])  # it is planted idle: the decoder neglects it
    assert page.locator("#latent-1 + output").text_content() == "2.50"


def test_the_most_informative_latent_comes_first_and_arrows_move_it(service, small, opened):
    page = opened(service.url)
    told = service.get("/model").json["latents"]
    order = [label.split()[1] for label in page.locator("#sliders label").all_text_contents()]
    assert order == [str(latent["number"]) for latent in told if latent["place"] is not None]
    first = page.locator("#sliders input").first
    page.keyboard.press("Tab")
    while not first.evaluate("e => e === document.activeElement"):
        page.keyboard.press("Tab")
    assert first.evaluate("e => getComputedStyle(e).outlineStyle") == "solid"
    drawing(page, lambda: page.keyboard.press("ArrowRight"))
    z = np.zeros((1, 4))
    z[0, told[0]["place"]] = 0.05
    assert np.abs(grey(page, "shrunk") - as_grey(small.decode(z)[0, 0])).max() <= 1


def test_prior_draws_are_normal_and_shown(service, small, opened):
    page = opened(service.url)
    drawn = []
    for _ in range(25):
        drawing(page, lambda: page.click("#prior"))
        z = z_of(page, 6)[0]
        assert (z[1], z[4]) == (CONSTANTS[1], CONSTANTS[4])
        drawn.append(z[[0, 2, 3, 5]])
    assert abs(np.mean(drawn)) < 0.3
    assert 0.8 < np.std(drawn) < 1.2
    z = np.array([drawn[-1]])
    assert np.abs(grey(page, "shrunk") - as_grey(small.decode(z)[0, 0])).max() <= 3  # z is rounded to 0.01 on the page


def test_a_dropped_picture_is_encoded_and_its_posterior_drawn_from(service, small, opened):
    page = opened(service.url)
    pixels = np.random.default_rng(0).integers(0, 256, (6, 5), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    transfer = page.evaluate_handle(
        """bytes => { const t = new DataTransfer();
        t.items.add(new File([new Uint8Array(bytes)], "a.png", { type: "image/png" })); return t; }""",
        list(stream.getvalue()),
    )
    drawing(page, lambda: page.dispatch_event("#drop", "drop", {"dataTransfer": transfer}))
    x = (pixels / 255).reshape(1, 1, 6, 5)
    mean, logvar = small.encode(x)
    np.testing.assert_allclose(z_of(page, 6)[0][[0, 2, 3, 5]], mean[0], atol=0.05)
    assert np.abs(grey(page, "input") - pixels).max() <= 1
    assert np.abs(grey(page, "shrunk") - as_grey(small.decode(mean)[0, 0])).max() <= 3
    draws = []
    for _ in range(25):
        drawing(page, lambda: page.click("#posterior"))
        draws.append(z_of(page, 6)[0][[0, 2, 3, 5]])
    deviation = (np.array(draws) - mean) / np.exp(0.5 * logvar)
    assert abs(deviation.mean()) < 0.4
    assert 0.75 < deviation.std() < 1.25
    drawing(page, lambda: page.click("#mean"))
    np.testing.assert_allclose(z_of(page, 6)[0][[0, 2, 3, 5]], mean[0], atol=0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_follows_the_colour_scheme(service, opened, scheme):
    page = opened(service.url, width=400, scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (np.mean([int(n) for n in paper[4:-1].split(",")]) < 128) == (scheme == "dark")
    unnamed = page.evaluate(
        "[...document.querySelectorAll('input:not([hidden]), button')]"
        ".filter(e => !e.labels?.length && !e.textContent).length"
    )
    assert unnamed == 0
    page.locator("#idle-sliders input").last.scroll_into_view_if_needed()
    assert page.locator("#shrunk").evaluate("e => e.getBoundingClientRect().top") >= 0  # it stays in sight


def test_the_api_page_lists_every_route(service, opened):
    page = opened(service.url + "docs", drawn=False)
    page.wait_for_selector("section.route")
    heads = page.locator("section h2").all_text_contents()
    assert sorted(heads) == [
        "GET /health", "GET /metrics", "GET /model", "POST /decode", "POST /encode", "POST /reconstruct", "POST /sample"
    ]  # fmt: skip
    assert '{ "x": number[1..64][1][6][5] }' in page.locator("#routes").text_content()


def test_with_a_token_the_page_asks_for_it(small, chromium):
    with serving(small.folder, VAEPRUNE_TOKEN=TOKEN) as running:
        page = chromium.new_page()
        page.goto(running.url)
        page.fill("#token", TOKEN)
        page.click("#token-form button")
        page.wait_for_selector("body[data-drawn]")
        assert page.locator("#sliders input").count() == 4
        assert page.locator("#idle-sliders input:disabled").count() == 2  # there is no original to move
        page.close()


@pytest.mark.parametrize(
    ("row_shape", "latent_shape", "size"),
    [((3, 4, 5), (2,), (5, 4)), ((2, 4, 5), (3, 2, 2), (10, 4)), ((7,), (2,), (240, 120)), ((4, 5), (2,), (5, 4))],
    ids=["colour", "channels and maps", "rows without axes", "no channel axis"],
)
def test_rows_of_other_shapes_are_shown(folder: Path, opened, row_shape, latent_shape, size):
    pair = write_pair(folder, row_shape=row_shape, latent_shape=latent_shape)
    with serving(folder) as running:
        page = opened(running.url)
        drawing(page, lambda: move(page, 1, 1.25))
        z = np.zeros((1, *latent_shape))
        z[0, 1] = 1.25
        x_hat = pair.decode(z)[0]
        width, height, flat = page.evaluate(PIXELS, "shrunk")
        assert (width, height) == size
        pixels = np.array(flat).reshape(height, width, 4)[..., :3]
        if len(row_shape) == 1:
            assert pixels.any()
            return
        expected = x_hat.transpose(1, 2, 0) if len(row_shape) == 3 and row_shape[0] == 3 else None
        if expected is None:
            channels = x_hat if x_hat.ndim == 3 else x_hat[None]
            expected = np.concatenate(list(channels), axis=1)[..., None].repeat(3, 2)
        assert np.abs(pixels - as_grey(expected)).max() <= 1
