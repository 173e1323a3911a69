"""Markdown from results.json: the tables of docs/paper.md, never typed by hand."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import printed
from experiments import rate

from vaeprune.errors import UsageError

Results = dict[str, Any]
_TITLES = {
    "mnist-dense": "dense MNIST",
    "mnist-conv": "convolutional MNIST",
    "tiles-dense": "dense tiles",
    "tiles-conv": "convolutional tiles",
}
_SHOWN_EPOCHS = (1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 25, 30, 40)
_REGION = re.compile(r"(<!-- begin ([\w-]+) -->\n).*?(<!-- end \2 -->)", re.DOTALL)
_NOT_THERE = "–"


def everything(results: Results) -> str:
    """All tables, each under its name."""
    return "\n".join(f"## {name}\n\n{block(results)}" for name, block in BLOCKS.items())


def filled(page: str, results: Results) -> str:
    """A page whose regions between `<!-- begin NAME -->` and `<!-- end NAME -->` hold the tables of those names.

    Raises UsageError if a region asks for a table that there is not.
    """

    def fill(region: re.Match[str]) -> str:
        start, name, end = region.groups()
        if name not in BLOCKS:
            raise UsageError(f"page: asks for the table {name!r}, expected one of {', '.join(BLOCKS)}")
        return f"{start}\n{BLOCKS[name](results)}\n{end}"

    return _REGION.sub(fill, page)


def rounded(value: Any) -> Any:
    """The same results with six significant digits."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: rounded(entry) for key, entry in value.items()}
    return [rounded(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def table(head: Sequence[str], rows: Iterable[Sequence[object]], texts: int = 1) -> str:
    """A Markdown table; the first `texts` columns are text, the others are numbers."""
    lines = [head, ["---"] * texts + ["---:"] * (len(head) - texts), *rows]
    return "".join("| " + " | ".join(str(cell) for cell in line) + " |\n" for line in lines)


def _number(value: float | None) -> str:
    """Three significant digits, small ones as powers of ten."""
    if value is None:
        return _NOT_THERE
    return f"{value:#.3g}" if abs(value) >= 0.001 or value == 0 else f"{value:.1e}"


def _range(values: Sequence[float], text: Callable[[float], str] = _number) -> str:
    if not values:
        return _NOT_THERE
    low, high = text(min(values)), text(max(values))
    return low if low == high else f"{low} to {high}"


def _seeds(results: Results, network: str) -> dict[str, Results]:
    found: dict[str, Results] = results["networks"][network]["seeds"]
    return found


# --- the tables


def _state(results: Results) -> str:
    said = [f"**{results['note']}**, so these numbers say nothing about the paper.\n"] if results["note"] else []
    missing = results["missing"]
    return "".join([*said, f"Not trained: {', '.join(missing)}.\n" if missing else ""])


def _idle(results: Results) -> str:
    rows = []
    for network in results["networks"]:
        counts = [seed["idle"] for seed in _seeds(results, network).values()]
        mean = f"{sum(counts) / len(counts):.1f}" if counts else _NOT_THERE
        ours = ", ".join(map(str, counts)) or _NOT_THERE
        rows.append((_TITLES[network], printed.IDLE[network], mean, _range(counts, str), ours))
    return table(("idle of 16", "paper", "ours, mean", "range", "seed by seed"), rows)


def _trainings(results: Results) -> str:
    rows = [
        (
            f"{_TITLES[network]}, seed {seed}",
            *(run[key] for key in ("idle", "mixed", "active")),
            *(f"{run[key]:.2f}" for key in ("loss", "reconstruction", "kl", "held_out_loss")),
        )
        for network in results["networks"]
        for seed, run in _seeds(results, network).items()
    ]
    return table(("", "idle", "mixed", "active", "loss", "reconstruction", "KL", "−ELBO, held out"), rows)


def _latents(network: str) -> Callable[[Results], str]:
    """Table I or II, or its convolutional counterpart, of seed 0."""

    def write(results: Results) -> str:
        run = results["networks"].get(network, {"seeds": {}})["seeds"].get("0")
        if run is None:
            return "Not trained.\n"
        told = printed.TABLES.get(network)
        rows = []
        for latent in run["latents"]:
            pair = told[latent["index"]] if told else None
            theirs = [_number(pair[0]), f"{pair[1]:.3f}"] if pair else []
            ours = (_number(latent["variance"]), f"{latent['posterior_variance']:.3f}", f"{latent['kl']:.3f}")
            rows.append((latent["index"], *theirs, *ours, latent["verdict"]))
        head = ["paper: variance", "mean σ²"] if told else []
        return table(("no.", *head, "ours: variance", "mean σ²", "KL, nats", "verdict"), rows)

    return write


def _ranges(results: Results) -> str:
    rows = []
    for network in results["networks"]:
        told = printed.TABLES.get(network)
        if told:
            rows.append((f"{_TITLES[network]}, paper", *_four([p for p in told if p[0] < 0.01], told)))
        pairs = [
            [(latent["variance"], latent["posterior_variance"], latent["verdict"]) for latent in run["latents"]]
            for run in _seeds(results, network).values()
        ]
        every = [latent for run in pairs for latent in run]
        if every:
            idle = [(v, s) for v, s, verdict in every if verdict == "inactive"]
            used = [(v, s) for v, s, verdict in every if verdict == "active"]
            rows.append((f"{_TITLES[network]}, ours", *_four(idle, idle + used)))
    return table(("", "idle: variance", "mean σ²", "in use: variance", "mean σ²"), rows)


def _four(idle: Sequence[Sequence[float]], every: Sequence[Sequence[float]]) -> list[str]:
    used = [pair for pair in every if pair not in idle]
    return [_range([pair[column] for pair in part]) for part in (idle, used) for column in (0, 1)]


def _figure_5(results: Results) -> str:
    figure = results["figure_5"]
    rows = [
        (row["paper_label"], row["paper_weights"], row["layer"], row["shape"], row["weights"]) for row in figure["rows"]
    ]
    rows.append(("**together**", figure["paper_weights"], "", [], figure["weights"]))
    rows = [(told, f"{a:,}", layer, "×".join(map(str, shape)), f"{b:,}") for told, a, layer, shape, b in rows]
    return table(("paper", "weights", "ours", "output", "weights"), rows)


def _ablations(results: Results) -> str:
    rows = []
    for network, by_objective in results["ablations"].items():
        for words, run in by_objective.items():
            sigma2 = [latent["posterior_variance"] for latent in run["latents"]]
            variance = [latent["variance"] for latent in run["latents"]]
            advice = run["advice"]
            rows.append((f"{_TITLES[network]}, {words}", run["idle"], _range(variance), _range(sigma2), advice))
    return table(("", "idle of 16", "variances", "mean σ²", "advice of `analyze`"), rows)


def _growing(results: Results) -> str:
    rows = []
    for network, steps in results["growing"].items():
        for step in steps:
            advice = step["advice"] + (f" to {step['advised_size']}" if step["advice"] in ("grow", "shrink") else "")
            counts = (step["active"], step["mixed"], step["idle"])
            rows.append((_TITLES[network], step["size"], *counts, f"{step['held_out_loss']:.2f}", advice))
    return table(("", "latents", "active", "mixed", "idle", "−ELBO, held out", "advice"), rows)


def _along(key: str, what: str, text: Callable[[Any], str]) -> Callable[[Results], str]:
    """A column of the histories at some epochs, training by training."""

    def write(results: Results) -> str:
        epochs = [e for e in _SHOWN_EPOCHS if e <= results["scale"]["epochs"]]
        rows = [
            (f"{_TITLES[network]}, seed {seed}", *(text(run[key][epoch - 1]) for epoch in epochs))
            for network in results["networks"]
            for seed, run in _seeds(results, network).items()
        ]
        return table((f"{what} after epoch", *map(str, epochs)), rows)

    return write


def _limits(results: Results) -> str:
    """The same counts of seed 0 with other limits of the variance."""
    epochs = [e for e in _SHOWN_EPOCHS if e <= results["scale"]["epochs"]]
    rows = []
    for network in results["networks"]:
        run = _seeds(results, network).get("0", {"counts_by_limit": {}, "counts": []})
        by_limit = {**run["counts_by_limit"], "0.01": run["counts"]} if run["counts"] else {}
        for limit in sorted(by_limit, key=float):
            counts = [by_limit[limit][epoch - 1] for epoch in epochs]
            rows.append((f"{_TITLES[network]}, below {limit}", *counts))
    return table(("idle after epoch", *map(str, epochs)), rows)


def _rates(results: Results) -> str:
    """When a training's latents carry as many nats as the paper's table, and how many are idle then."""
    rows = []
    for network, told in printed.TABLES.items():
        theirs = rate(told)
        for seed, run in results["networks"].get(network, {"seeds": {}})["seeds"].items():
            at = next((i for i, nats in enumerate(run["rates"]) if nats >= theirs), None)
            then = (_NOT_THERE, _NOT_THERE) if at is None else (at + 1, run["counts"][at])
            last = (f"{run['rates'][-1]:.1f}", run["counts"][-1])
            rows.append((f"{_TITLES[network]}, seed {seed}", f"{theirs:.1f}", printed.IDLE[network], *then, *last))
    return table(
        ("", "paper: nats", "idle", "ours reach that in epoch", "idle then", "nats at the end", "idle at the end"), rows
    )


def _starts(results: Results) -> str:
    rows = []
    for network, run in results["starts"].items():
        glorot = _seeds(results, network).get("0")
        pair = [(part["idle"], f"{part['held_out_loss']:.2f}") if part else (_NOT_THERE,) * 2 for part in (glorot, run)]
        rows.append((f"{_TITLES[network]}, seed 0", *pair[0], *pair[1]))
    return table(("", "Glorot: idle", "−ELBO, held out", "PyTorch's start: idle", "−ELBO, held out"), rows)


def _pictures(results: Results) -> str:
    figures = results["figures"]
    rows: list[tuple[str, str, str]] = []

    def add(name: str, what: str, value: Callable[[Results], str]) -> None:
        if name in figures:
            rows.append((name.replace("-", " "), what, value(figures[name])))

    def ends(key: str) -> Callable[[Results], str]:
        return lambda found: f"{_number(found[key][0])} → {_number(found[key][-1])}"

    add("figure-1", "mean σ² of the ten digits, before training → after the epoch", ends("mean_variance"))
    add("figure-1", "their distance from the origin (RMS), before → after", ends("spread_of_means"))
    for key, how in (("A", "with"), ("B", "without")):
        if key in figures.get("figure-2", {}):
            add("figure-2", f"standard deviations of the means along their axes, {how} sampling", partial(_axes, key))
            what = f"distance from a draw of the prior to the nearest of 5,000 means, {how} sampling"
            add("figure-2", what, partial(_gap, key))
    add("figure-4", "largest difference of a pixel, 1,000 samples", lambda found: _number(found["max_difference"]))
    add("figure-4", "RMS difference", lambda found: _number(found["rms_difference"]))
    for name in ("figure-7", "figure-9"):
        add(name, "wrong area of a reconstruction, in tiles", lambda found: _number(found["wrong_area_in_tiles"]))
    for name in ("figure-8", "figure-10"):
        add(name, "patches brighter than ½: samples; images", _both("patches", "patches_of_images", _number))
        keys = ("share_with_too_many", "share_of_images_with_too_many")
        add(name, "with more than three: samples; images", _both(*keys, "{:.0%}".format))
    add("figure-11", "lowest σ² of latents that gave up", lambda found: _range(found["lowest_sigma2_of_idle"]))
    return table(("", "what", "measured"), rows, texts=2)


def _both(first: str, second: str, text: Callable[[float], str]) -> Callable[[Results], str]:
    return lambda found: f"{text(found[first])}; {text(found[second])}"


def _axes(key: str, found: Results) -> str:
    return ", ".join(map(_number, found[key]["axes"]))


def _gap(key: str, found: Results) -> str:
    return _number(found[key]["gap"])


BLOCKS: dict[str, Callable[[Results], str]] = {
    "state": _state,
    "idle": _idle,
    "trainings": _trainings,
    "table-1": _latents("mnist-dense"),
    "table-2": _latents("tiles-dense"),
    "table-mnist-conv": _latents("mnist-conv"),
    "table-tiles-conv": _latents("tiles-conv"),
    "ranges": _ranges,
    "figure-5": _figure_5,
    "ablations": _ablations,
    "growing": _growing,
    "counts": _along("counts", "idle", str),
    "limits": _limits,
    "nats": _along("rates", "nats", "{:.1f}".format),
    "rates": _rates,
    "starts": _starts,
    "pictures": _pictures,
}
