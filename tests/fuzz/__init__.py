"""Seeded fuzzing of the command line: damaged inputs must end in one message and a documented exit code.

`python -m tests.fuzz --seed 1 --n 2000` runs it; `--only INDEX` replays one input and keeps its folder.
"""
