"""Options declared once as the fields of a dataclass, and shared by several commands."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable
from typing import Any


def takes(*groups: type[Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Replace each parameter of a command that is annotated with a group by the group's own options."""

    def wrap(command: Callable[..., Any]) -> Callable[..., Any]:
        hints = typing.get_type_hints(command, include_extras=True)
        signature = inspect.signature(command)
        owners = {name: hint for name, hint in hints.items() if hint in groups}
        flat: list[inspect.Parameter] = []
        kind = inspect.Parameter.KEYWORD_ONLY
        for name, parameter in signature.parameters.items():
            flat += _options(owners[name]) if name in owners else [parameter.replace(annotation=hints[name], kind=kind)]

        @functools.wraps(command)
        def run(**given: Any) -> Any:
            for name, group in owners.items():
                given[name] = group(**{f.name: given.pop(f.name) for f in dataclasses.fields(group)})
            return command(**given)

        run.__signature__ = signature.replace(parameters=flat)  # type: ignore[attr-defined]  # as inspect reads it
        run.__annotations__ = {p.name: p.annotation for p in flat} | {"return": hints.get("return")}
        del run.__wrapped__
        return run

    return wrap


def _options(group: type[Any]) -> list[inspect.Parameter]:
    hints = typing.get_type_hints(group, include_extras=True)
    kind = inspect.Parameter.KEYWORD_ONLY
    return [
        inspect.Parameter(
            f.name,
            kind,
            default=inspect.Parameter.empty if f.default is dataclasses.MISSING else f.default,
            annotation=hints[f.name],
        )
        for f in dataclasses.fields(group)
    ]
