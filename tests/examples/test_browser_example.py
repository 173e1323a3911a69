"""The page in a real browser: onnxruntime-web gives what onnxruntime gives."""

from __future__ import annotations

import functools
import http.server
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from example_places import EXAMPLES, SHAPE
from PIL import Image

from vaeprune import load
from vaeprune.data import as_data
from vaeprune.exporting import Limits, Wanted, export

api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
RUNTIME = EXAMPLES / "browser" / "node_modules" / "onnxruntime-web"
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium to open the page in"),
    pytest.mark.skipif(not RUNTIME.is_dir(), reason="run `npm ci` in examples/browser first"),
]
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
PIXELS = """() => { const c = document.getElementById("after");
    return [...c.getContext("2d").getImageData(0, 0, c.width, c.height).data]; }"""


class _Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def site(shelf: Path, small: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The example as it lies there, with models in three precisions beside it, on a port of this machine."""
    folder = tmp_path_factory.mktemp("site")
    for name in ("index.html", "vae.js"):
        shutil.copy(EXAMPLES / "browser" / name, folder)
    (folder / "node_modules").symlink_to(EXAMPLES / "browser" / "node_modules")
    rows = as_data(shelf / "rows.npy")
    for precision in ("fp32", "fp16", "int8-static", "int8-dynamic"):
        wide = Limits(0.2, 1000)  # random weights; here what counts is that both runtimes compute the same
        export(load(small), rows, folder / precision, Wanted(precision, limits=wide))
    handler = functools.partial(_Silent, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield found
        found.close()


@pytest.fixture
def opened(browser: Any, site: str) -> Iterator[Any]:
    """Open the page for one precision; at the end nothing may stand on its console or be asked of anybody else."""
    said: list[str] = []
    asked: list[str] = []
    page = browser.new_page()
    page.set_default_timeout(60_000)
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))

    def open_page(precision: str) -> Any:
        page.goto(f"{site}/?model={precision}")
        page.wait_for_selector("#sample:not([disabled])")
        return page

    yield open_page
    page.close()
    assert said == []
    assert all(url.startswith((site, "data:", "blob:")) for url in asked)


def in_python(small: Path, part: str, value: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(small / f"{part}.onnx", providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: value})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "tolerance"), [("fp32", 1e-5), ("fp16", 5e-3), ("int8-static", 0.05), ("int8-dynamic", 0.05)]
)
def test_the_browser_computes_what_python_computes(opened: Any, small: Path, precision: str, tolerance: float) -> None:
    """Against the float32 files run in Python, whatever the browser's files hold."""
    page = opened(precision)
    generator = np.random.default_rng(3)
    x = generator.random((3, *SHAPE), dtype=np.float32)
    z = generator.standard_normal((3, 4), dtype=np.float32)
    mu, logvar, x_hat = page.evaluate(
        """async ([folder, x, z]) => {
            const vae = await (await import("./vae.js")).open(folder);
            const { mu, logvar } = await vae.encode(new Float32Array(x));
            return [[...mu], [...logvar], [...await vae.decode(new Float32Array(z))]];
        }""",
        [precision, x.ravel().tolist(), z.ravel().tolist()],
    )
    expected = [part.ravel() for part in (*in_python(small, "encoder", x), *in_python(small, "decoder", z))]
    for found, reference in zip((mu, logvar, x_hat), expected, strict=True):
        span = max(float(np.ptp(reference)), 1.0)
        np.testing.assert_allclose(found, reference, rtol=0, atol=tolerance * span)


@pytest.mark.slow
def test_a_picture_is_rebuilt_on_the_canvas(opened: Any, shelf: Path, small: Path, tmp_path: Path) -> None:
    pixels = np.load(shelf / "rows.npy")[0, 0]
    Image.fromarray(pixels).save(tmp_path / "x.png")
    page = opened("fp32")
    assert page.inner_text("#state") == "4 latents"
    page.set_input_files("#picture", tmp_path / "x.png")
    page.wait_for_function("document.getElementById('state').textContent.includes('decoded')")
    grey = page.evaluate(PIXELS)[::4]
    mu, _ = in_python(small, "encoder", pixels.reshape(1, *SHAPE).astype(np.float32) / 255)
    (x_hat,) = in_python(small, "decoder", mu)
    np.testing.assert_allclose(np.array(grey) / 255, x_hat.ravel(), rtol=0, atol=1 / 255)


@pytest.mark.slow
def test_a_draw_from_the_prior_fills_the_canvas(opened: Any) -> None:
    page = opened("fp32")
    page.click("#sample")
    page.wait_for_function("document.getElementById('state').textContent === 'a draw from the prior'")
    alpha = page.evaluate(PIXELS)[3::4]
    assert alpha == [255] * (SHAPE[1] * SHAPE[2])


@pytest.mark.slow
def test_numbers_that_are_no_rows_are_refused(opened: Any) -> None:
    page = opened("fp32")
    with pytest.raises(api.Error, match="z: 5 numbers are no rows of 4"):
        page.evaluate("""async () => (await (await import("./vae.js")).open("fp32")).decode(new Float32Array(5))""")
