"""Where the examples are, and the shape of the pictures they are tried on."""

from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"
SHAPE = (1, 8, 6)
