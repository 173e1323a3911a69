"""The routes: what is asked of the models, and what is told about them."""

from __future__ import annotations

import contextlib
import mimetypes
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from importlib.resources import files
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from vaeprune import __version__
from vaeprune.service import documents as d
from vaeprune.service import metrics as m
from vaeprune.service.batching import Batcher
from vaeprune.service.bodies import Bodies, accepted, kind_of
from vaeprune.service.guard import PAGE, Guard, refusal_response
from vaeprune.service.limits import Limits
from vaeprune.service.model import OnnxModel, OnnxPart
from vaeprune.service.npy import Array
from vaeprune.service.refusals import CONTENT_TYPE as JSON
from vaeprune.service.refusals import Refusal, busy, error_body, unprocessable
from vaeprune.service.served import Served

Which = Annotated[
    Literal["shrunk", "original"], Query(alias="model", description="Which model answers; original needs --against.")
]


class SampleRequest(BaseModel):
    """How many samples, and the seed of their z; another seed each time if left out."""

    model_config = ConfigDict(extra="forbid", strict=True)
    count: int = Field(1, ge=1, description="Number of samples, at most the rows of a request.")
    seed: int | None = Field(None, ge=0, lt=2**63)


class Service:
    """The models with their queues. `busy` requests are there whole and not yet answered."""

    def __init__(self, served: Served, limits: Limits, metrics: m.Metrics) -> None:
        self.served, self.limits, self.metrics = served, limits, metrics
        self.bodies = Bodies(limits)
        self.busy = 0
        models = [served.model, *([served.original] if served.original else [])]
        self._threads = ThreadPoolExecutor(2 * len(models), "onnxruntime")
        self._batchers = {
            id(part): self._batcher(part, f"{name} {part.path.stem}")
            for name, model in zip(("shrunk", "original"), models, strict=False)
            for part in (model.encoder, model.decoder)
        }
        metrics.gauges |= {
            "vaeprune_requests_waiting": ("Requests that are there whole and not yet answered.", lambda: self.busy),
            "vaeprune_body_bytes": ("Bytes of request bodies in memory.", lambda: self.bodies.held),
        }

    def _batcher(self, part: OnnxPart, name: str) -> Batcher:
        return Batcher(part, self.limits.rows, self._threads, lambda rows: self.metrics.called(name, rows))

    async def run(self, part: OnnxPart, rows: Array) -> list[Array]:
        """The outputs of `part`, all finite. Raises Refusal (422) where they are not."""
        outputs = await self._batchers[id(part)](rows)
        for output in outputs:
            if not np.isfinite(output).all():
                bad = int((~np.isfinite(output)).reshape(len(output), -1).any(1).argmax())
                raise unprocessable(
                    f"{part.takes.name}: row {bad} is so far out that the {part.path.stem} gives NaN or infinity"
                )
        return outputs

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """A place among those that wait. Raises Refusal (429) where there is none."""
        if self.busy >= self.limits.queue:
            raise busy(self.limits.queue)
        self.busy += 1
        try:
            yield
        finally:
            self.busy -= 1

    def model(self, which: str) -> OnnxModel:
        """The model asked for. Raises Refusal (422) where there is no original."""
        found = self.served.named(which)
        if found is None:
            raise unprocessable("model: there is no original here", "start the service with --against ORIGINAL")
        return found

    @contextlib.asynccontextmanager
    async def rows(self, request: Request, name: str, shape: tuple[int, ...]) -> AsyncIterator[tuple[Array, str]]:
        """The rows that a request holds, and the kind of answer it wants; with a place until it is answered."""
        kind = kind_of(request)
        wanted = accepted(request, kind)
        async with self.bodies.of(request) as body:
            with self.place():
                yield await self.bodies.rows(body, kind, name, shape), wanted


def make_app(served: Served, limits: Limits, token: str | None) -> Guard:
    """The service as an ASGI application, behind its guard."""
    metrics = m.Metrics()
    service = Service(served, limits, metrics)
    app = FastAPI(
        title=f"vaeprune serve: {served.model.folder.resolve().name}",
        version=__version__,
        description=d.DESCRIPTION,
        docs_url=None,  # its page would load scripts from elsewhere; ours is in page/
        redoc_url=None,
        telemetry={"auto_configure": False, "tracing": False, "metrics": False, "logs": False},
    )
    _add_model_routes(app, service)
    _add_sample_route(app, service)
    _add_telling_routes(app, service)
    _add_page(app)
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(HTTPException, _not_there)
    app.add_exception_handler(HTTPStatus.NOT_FOUND, _not_there)
    app.add_exception_handler(HTTPStatus.METHOD_NOT_ALLOWED, _not_there)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(Exception, _broken)
    routes = [route.path for route in app.routes if hasattr(route, "path")]
    return Guard(app, token, metrics, routes)


def _add_model_routes(app: FastAPI, service: Service) -> None:
    x, z = _schemas(service)

    @app.post("/encode", **d.route("Posterior of each row: mean and ln of the variance.", x=x, mean=z, logvar=z))
    async def encode(request: Request, which: Which = "shrunk") -> Response:
        model = service.model(which)
        async with service.rows(request, "x", model.row_shape) as (rows, wanted):
            mean, logvar = await service.run(model.encoder, rows)
            return await service.bodies.answer({"mean": mean, "logvar": logvar}, wanted, np.stack([mean, logvar]))

    @app.post("/decode", **d.route("What each z stands for: the mean of p(x | z).", z=z, x_hat=x))
    async def decode(request: Request, which: Which = "shrunk") -> Response:
        model = service.model(which)
        async with service.rows(request, "z", model.latent_shape) as (rows, wanted):
            (x_hat,) = await service.run(model.decoder, rows)
            return await service.bodies.answer({"x_hat": x_hat}, wanted, x_hat)

    @app.post("/reconstruct", **d.route("Each row encoded and its mean decoded.", x=x, x_hat=x, mean=z, logvar=z))
    async def reconstruct(request: Request, which: Which = "shrunk") -> Response:
        model = service.model(which)
        async with service.rows(request, "x", model.row_shape) as (rows, wanted):
            mean, logvar = await service.run(model.encoder, rows)
            (x_hat,) = await service.run(model.decoder, mean)
            return await service.bodies.answer({"x_hat": x_hat, "mean": mean, "logvar": logvar}, wanted, x_hat)


def _add_sample_route(app: FastAPI, service: Service) -> None:
    (x, z), most = _schemas(service), service.limits.rows

    @app.post("/sample", **d.sample_route(SampleRequest.model_json_schema(), most, z=z, x_hat=x))
    async def sample(request: Request, which: Which = "shrunk") -> Response:
        model = service.model(which)
        if kind_of(request) != JSON:
            raise unprocessable("body: is an array, expected a JSON object with count and seed")
        wanted = accepted(request, JSON)
        async with service.bodies.of(request) as body:
            asked = _sample_request(body, most)
            with service.place():
                generator = np.random.default_rng(asked.seed)
                rows = generator.standard_normal((asked.count, *model.latent_shape), np.float32)
                (x_hat,) = await service.run(model.decoder, rows)
                return await service.bodies.answer({"z": rows, "x_hat": x_hat}, wanted, x_hat)


def _schemas(service: Service) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of rows of x, and of z of any model that is served."""
    served, most = service.served, service.limits.rows
    models = [served.model, *([served.original] if served.original else [])]
    return d.rows_schema(most, served.model.row_shape), d.rows_schema(most, *(model.latent_shape for model in models))


def _sample_request(body: bytes, most: int) -> SampleRequest:
    try:
        asked = SampleRequest.model_validate_json(body)
    except ValidationError as error:
        raise unprocessable(f"body: {_first(error.errors())}", "send {} or an object with count and seed") from None
    if asked.count > most:
        raise unprocessable(f"count: got {asked.count}, expected 1 to {most}")
    return asked


def _add_telling_routes(app: FastAPI, service: Service) -> None:
    @app.get("/health", **d.told("Ready: both models have answered a row.", d.HEALTH))
    async def health() -> Response:
        return Response(b'{"status":"ready"}', media_type=JSON)

    @app.get("/model", **d.told("Shapes, and every latent of the original with its KL.", d.MODEL))
    async def model() -> dict[str, Any]:
        return await run_in_threadpool(service.served.describe) | {"limits": {"rows": service.limits.rows}}

    @app.get("/metrics", **d.told("Counts and times, in Prometheus' text format.", None, "text/plain"))
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=m.CONTENT_TYPE)


def _add_page(app: FastAPI) -> None:
    """The explorer, the page of the API, and what they are made of: read once, sent from memory."""
    folder = files("vaeprune.service") / "page"
    found = {entry.name: entry.read_bytes() for entry in folder.iterdir() if entry.is_file()}

    def send(name: str) -> Response:
        kind = "text/javascript" if name.endswith(".js") else mimetypes.guess_type(name)[0]
        return Response(found[name], media_type=kind)

    @app.get("/", include_in_schema=False)
    async def explorer() -> Response:
        return send("index.html")

    @app.get("/docs", include_in_schema=False)
    async def documents() -> Response:
        return send("docs.html")

    @app.get(PAGE + "{name}", include_in_schema=False)
    async def page(name: str) -> Response:
        if name not in found:
            raise HTTPException(HTTPStatus.NOT_FOUND)
        return send(name)


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)  # noqa: S101  what the handler was registered for
    return refusal_response(error)


async def _not_there(request: Request, error: Exception) -> Response:
    status = HTTPStatus(getattr(error, "status_code", HTTPStatus.NOT_FOUND))
    what = f"{request.method} {request.url.path[:100]}: {status.phrase.lower()}"
    headers = dict(getattr(error, "headers", None) or {})
    return refusal_response(Refusal(status, what, "GET /docs lists what there is", headers))


async def _invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101  what the handler was registered for
    return refusal_response(unprocessable(_first(error.errors())))


async def _broken(_: Request, error: Exception) -> Response:
    body = error_body("InternalError", f"{type(error).__name__} in the service", "this is a bug; its log says more")
    return Response(body, HTTPStatus.INTERNAL_SERVER_ERROR.value, media_type=JSON)


def _first(errors: Any) -> str:
    """The first thing that pydantic found wrong, in a line; it repeats no input."""
    first = errors[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where}: {first['msg']}"[:200] if where else str(first["msg"])[:200]
