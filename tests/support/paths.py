"""Folders that tests read."""

from pathlib import Path

TESTS = Path(__file__).parents[1]
CHECKOUT = TESTS.parent
SHARED = CHECKOUT.parent / "shared"
"""Real data beside the checkout; a test that needs it is skipped where the folder is absent."""
SUPPORT = TESTS / "support"
