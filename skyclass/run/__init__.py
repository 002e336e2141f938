"""One run: its configuration, folder, plan, stages, commits, lease, progress and publication."""
