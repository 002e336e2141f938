"""The published class catalogue. Nothing here knows a run."""
