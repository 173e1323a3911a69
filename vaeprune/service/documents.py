"""The OpenAPI document's pieces, made from the shapes that requests are checked against."""

from __future__ import annotations

from typing import Any

from vaeprune.service import npy, refusals
from vaeprune.service.refusals import CONTENT_TYPE as JSON

DESCRIPTION = (
    "A Variational Autoencoder in onnxruntime. Rows go in and come out as JSON or, with content-type and accept "
    "application/x-npy, as .npy arrays of floats; the first axis is the batch. Everything else is an error object."
)
_REFUSALS = {
    400: "The body, or the request, cannot be read.",
    401: "The token is missing or wrong.",
    406: "Neither JSON nor .npy is accepted.",
    408: "The request did not arrive in time.",
    413: "The body is too large.",
    415: "The body is neither JSON nor .npy.",
    422: "The body can be read, but not answered by this model.",
    429: "Too many requests are waiting.",
    503: "There is no room for another connection or body.",
}
_TEXT, _NUMBER, _INTEGER = {"type": "string"}, {"type": "number"}, {"type": "integer"}
_MAYBE_NUMBER = {"anyOf": [_NUMBER, {"type": "null"}]}
_BYTES = {"type": "string", "format": "binary"}


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": list(properties), "properties": properties, "additionalProperties": False}


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


HEALTH = _object(status={"const": "ready"})
MODEL = _object(
    name=_TEXT,
    version=_TEXT,
    row_shape=_list(_INTEGER),
    latent_shape=_list(_INTEGER),
    original_latent_size=_INTEGER,
    likelihood={"anyOf": [_TEXT, {"type": "null"}]},
    shown_range=_list(_NUMBER),
    kl_from=_TEXT,
    latents=_list(
        _object(
            number=_INTEGER,
            place={"anyOf": [_INTEGER, {"type": "null"}]},
            kl=_MAYBE_NUMBER,
            constant=_MAYBE_NUMBER,
            evidence=_TEXT,
        )
    ),
    against={"anyOf": [_TEXT, {"type": "null"}]},
    limits=_object(rows=_INTEGER),
)


def rows_schema(most: int, *shapes: tuple[int, ...]) -> dict[str, Any]:
    """At most so many rows of one of `shapes`."""
    kinds = [_nested(shape) for shape in dict.fromkeys(shapes)]
    variants = [{"type": "array", "minItems": 1, "maxItems": most, "items": kind} for kind in kinds]
    return variants[0] if len(variants) == 1 else {"anyOf": variants}


def _nested(shape: tuple[int, ...]) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "number", "minimum": -3e38, "maximum": 3e38}
    for size in reversed(shape):
        schema = {"type": "array", "minItems": size, "maxItems": size, "items": schema}
    return schema


def route(summary: str, **values: dict[str, Any]) -> dict[str, Any]:
    """What FastAPI is told of a route whose first value goes in and whose others come out."""
    (name, taken), *given = values.items()
    body = {JSON: {"schema": _object(**{name: taken})}, npy.CONTENT_TYPE: {"schema": _BYTES}}
    return _described(summary, body, dict(given))


def sample_route(schema: dict[str, Any], most: int, **given: dict[str, Any]) -> dict[str, Any]:
    """Of the route that draws samples."""
    schema["properties"]["count"]["maximum"] = most
    return _described("z drawn from the prior N(0, 1), and decoded.", {JSON: {"schema": schema}}, given)


def told(summary: str, schema: dict[str, Any] | None, kind: str = JSON) -> dict[str, Any]:
    """Of a route that takes nothing."""
    content = {kind: {"schema": schema or _TEXT}}
    responses = {200: {"description": "As asked.", "content": content}, **_refusals(400, 401, 408, 503)}
    return {"summary": summary, "responses": responses, "response_model": None}


def _described(summary: str, body: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    content = {JSON: {"schema": _object(**given)}, npy.CONTENT_TYPE: {"schema": _BYTES}}
    return {
        "summary": summary,
        "response_model": None,
        "openapi_extra": {"requestBody": {"required": True, "content": body}},
        "responses": {200: {"description": "As asked.", "content": content}, **_refusals(*_REFUSALS)},
    }


def _refusals(*statuses: int) -> dict[int | str, Any]:
    content = {JSON: {"schema": refusals.schema()}}
    return {status: {"description": _REFUSALS[status], "content": content} for status in statuses}
