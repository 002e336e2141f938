"""Benchmarks: each stage alone, the whole pipeline, and the pipeline with one stage taken out at a time."""
