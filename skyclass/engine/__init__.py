"""The engine: clusters, placement of work on their workers, and the bounded window of tasks."""
