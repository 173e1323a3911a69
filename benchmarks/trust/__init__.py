"""Campaigns against the promises of docs/security.md: malformed inputs, kills, random networks, mutants of the code.

`python -m benchmarks.trust` runs all of them at the counts asked, `python -m benchmarks.trust kills --count 20` one of
them in small. Results are kept after each piece, so a campaign that is interrupted goes on where it stopped.
"""

from __future__ import annotations


def main() -> None:
    """All campaigns, at the counts asked."""
    from benchmarks.trust.campaigns import run

    run([])
