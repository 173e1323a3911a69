"""Requests that nobody thought of, made from the service's own OpenAPI document."""

from __future__ import annotations

import pytest

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")


@pytest.mark.slow
def test_no_generated_request_breaks_the_service(service):
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import strategies as st

    schema = schemathesis.openapi.from_url(service.url + "openapi.json")
    modes = list(schemathesis.GenerationMode)
    cases = st.one_of(
        *(
            operation.ok().as_strategy(generation_mode=mode)
            for operation in schema.get_all_operations()
            for mode in modes
        )
    )
    statuses: set[int] = set()

    @settings(max_examples=150, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(cases)
    def ask(case):
        response = case.call(timeout=30)
        statuses.add(response.status_code)
        assert response.status_code < 500, response.text

    ask()
    assert {200, 422} <= statuses
