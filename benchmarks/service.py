"""`vaeprune serve` with the dense MNIST network: start-up, latency, load, slow clients, the page, strange requests."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from benchmarks.service_load import Question, questions, run_load
from benchmarks.timing import in_turn

MODEL = Path(__file__).parents[1] / "models" / "mnist-dense"
SECONDS = float(os.environ.get("VAEPRUNE_LOAD_SECONDS", "60"))
_CONNECTIONS = 64
_CHROMIUM = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def main() -> None:
    import vaeprune
    from vaeprune.architectures import DenseVAE

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "mnist-dense"
        folder.mkdir()
        vaeprune.export_onnx(vaeprune.load(MODEL), folder)
        _start_up(folder)
        with _serving(folder) as (process, url):
            _latency(folder, url)
        with _serving(folder) as (process, url):
            _load(folder, process, url)
        with _serving(folder) as (process, url):
            _slow_clients(process, url)
        with _serving(folder, "--against", folder) as (process, url):
            _page(url)
        tiny = Path(name) / "tiny"  # requests of 784 numbers a row take a second each to make up
        tiny.mkdir()
        vaeprune.export_onnx(DenseVAE((1, 4, 4), (8,), (8,), 3), tiny)
        with _serving(tiny, "--against", tiny, "--max-batch", 4) as (process, url):
            _strange_requests(process, url)


@contextlib.contextmanager
def _serving(folder: Path, *words: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    command = [sys.executable, "-m", "vaeprune.cli", "serve", folder, *words, "--port", "0", "--json"]
    with subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            lines = list(iter(process.stdout.readline, "}\n"))
            yield process, json.loads("".join(lines) + "}")["url"]
        finally:
            process.terminate()


def _session(folder: Path):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(folder / "decoder.onnx", options, providers=["CPUExecutionProvider"])


def _resident(process: subprocess.Popen[str]) -> float:
    """MiB."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def _start_up(folder: Path) -> None:
    """From starting the process to its first answer, and how much of it the process waited for a core (Linux tells)."""
    wall, had = [], []
    for _ in range(7):
        start = time.perf_counter()
        with _serving(folder) as (process, url):
            _health(*_address(url))
            wall.append(time.perf_counter() - start)
            waited = int(Path(f"/proc/{process.pid}/schedstat").read_text().split()[1]) / 1e9
            had.append(wall[-1] - waited)
            torch = "libtorch" in Path(f"/proc/{process.pid}/maps").read_text()
    print(f"torch in the service's process: {torch}; asked for: False")
    for name, found in (("start to the first /health", wall), ("less its wait for a core", had)):
        spread = f"min {min(found):.3g}, max {max(found):.3g}"
        print(f"{name}: median {statistics.median(found):.3g} s ({spread}); asked for: under 1 s")


def _latency(folder: Path, url: str) -> None:
    """Batch 1, over one connection that stays open, beside the call itself in this process."""
    session, connection = _session(folder), http.client.HTTPConnection(urlsplit(url).netloc)
    z = np.random.default_rng(0).standard_normal((1, *session.get_inputs()[0].shape[1:]), np.float32)
    stream = io.BytesIO()
    np.save(stream, z)
    bodies = {"application/x-npy": stream.getvalue(), "application/json": json.dumps({"z": z.tolist()}).encode()}

    def ask(kind: str) -> None:
        connection.request("POST", "/decode", bodies[kind], {"content-type": kind})
        response = connection.getresponse()
        response.read()
        assert response.status == 200

    work: dict[str, Callable[[], object]] = {"bare": lambda: session.run(None, {"z": z})}
    work |= {kind: lambda kind=kind: ask(kind) for kind in bodies}
    times = in_turn(work, runs=1000)
    connection.close()
    bare = 1000 * times["bare"].median
    limit = 1.5 * bare + 2
    for kind in bodies:
        median = 1000 * times[kind].median
        print(f"decode, batch 1, {kind}: median {median:.3g} ms, bare call {bare:.3g}; asked for: under {limit:.3g} ms")


def _asked(folder: Path, url: str) -> list[Question]:
    session = _session(folder)
    z = np.random.default_rng(1).standard_normal((512, *session.get_inputs()[0].shape[1:]), np.float32)
    return questions(urlsplit(url).netloc, z, session.run(None, {"z": z})[0])


def _load(folder: Path, process: subprocess.Popen[str], url: str) -> None:
    asked = _asked(folder, url)
    run_load(url, asked, _CONNECTIONS, 3)
    full = run_load(url, asked, _CONNECTIONS, 10)
    print(f"capacity, {_CONNECTIONS} connections at once: {full}")
    memory = [_resident(process)]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(2):
            memory.append(_resident(process))

    watcher = threading.Thread(target=watch)
    watcher.start()
    sustained = run_load(url, asked, _CONNECTIONS, SECONDS, 0.9 * full.rate)
    done.set()
    watcher.join()
    print(f"0.9 of it for {SECONDS:g} s: {sustained}; asked for: no error, nothing wrong")
    print(
        f"memory meanwhile: {memory[0]:.1f} MiB at first, at most {max(memory):.1f}, {memory[-1]:.1f} at last; "
        "asked for: flat"
    )
    beyond = run_load(url, asked, 400, 15)
    print(f"beyond, 400 connections at once: {beyond}; asked for: 429 or 503, nothing wrong")
    print(f"memory after it: {_resident(process):.1f} MiB")


def _slow_clients(process: subprocess.Popen[str], url: str) -> None:
    host, port = _address(url)
    head = f"POST /decode HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/x-npy\r\ncontent-length: 5000\r\n\r\n"
    memory, taken = [_resident(process)], []
    for _ in range(3):
        with contextlib.ExitStack() as stack:
            for i in range(1000):
                client = stack.enter_context(socket.create_connection((host, port)))
                client.sendall(head.encode()[: 60 if i % 2 else None])
                if i % 50 == 0:
                    taken.append(_health(host, port))
            time.sleep(12)
            taken.append(_health(host, port))
        memory.append(_resident(process))
    print(
        "1,000 slow clients, half of them stopping in the head and half in the body, three times: /health in at most "
        f"{1000 * max(taken):.3g} ms meanwhile; asked for: the next request served"
    )
    print(f"memory before and after each time: {', '.join(f'{m:.1f}' for m in memory)} MiB; asked for: no growth")


def _address(url: str) -> tuple[str, int]:
    return str(urlsplit(url).hostname), int(urlsplit(url).port or 0)


def _health(host: str, port: int) -> float:
    start = time.perf_counter()
    connection = http.client.HTTPConnection(host, port, timeout=30)
    connection.request("GET", "/health")
    assert connection.getresponse().status == 200
    connection.close()
    return time.perf_counter() - start


def _strange_requests(process: subprocess.Popen[str], url: str) -> None:
    try:
        import schemathesis
    except ImportError:
        print("2,000 generated requests: schemathesis is not installed")
        return
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import strategies as st

    schema = schemathesis.openapi.from_url(url + "openapi.json")
    modes = list(schemathesis.GenerationMode)
    operations = [operation.ok() for operation in schema.get_all_operations()]
    statuses: Counter[int] = Counter()
    before = _resident(process)

    @settings(max_examples=2000, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(st.one_of(*(operation.as_strategy(generation_mode=mode) for operation in operations for mode in modes)))
    def ask(case: schemathesis.Case) -> None:
        statuses[case.call(timeout=60).status_code] += 1

    ask()
    worse = sum(count for status, count in statuses.items() if status >= 500)
    print(f"{statuses.total():,} requests by schemathesis: statuses {dict(sorted(statuses.items()))}")
    print(f"of them 5xx: {worse}; asked for: 0 in 2,000; memory {before:.1f} then {_resident(process):.1f} MiB")


def _page(url: str) -> None:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        print("the page: there is no Chromium")
        return
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=_CHROMIUM)
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.goto(url)
        page.wait_for_selector("body[data-drawn]")
        found = page.evaluate("""async () => {
          const taken = [];
          const input = document.querySelector("#sliders input");
          for (let i = 0; i < 200; i++) {
            const start = performance.now();
            const drawn = new Promise(r => new MutationObserver((_, o) => { o.disconnect(); r(); })
              .observe(document.body, { attributeFilter: ["data-drawn"] }));
            input.value = 3 * Math.sin(i);
            input.dispatchEvent(new Event("input"));
            await drawn;
            await new Promise(requestAnimationFrame);
            taken.push(performance.now() - start);
          }
          return taken; }""")
        browser.close()
    p50, p95 = np.percentile(found, (50, 95))
    print(
        f"a slider moves to both pictures drawn: median {p50:.3g} ms, 95% in {p95:.3g}, at most {max(found):.3g} of "
        f"{len(found)}; asked for: within 100 ms"
    )
