"""Run the campaigns named, or all."""

from __future__ import annotations

import sys

from benchmarks.trust.campaigns import run

run(sys.argv[1:])
