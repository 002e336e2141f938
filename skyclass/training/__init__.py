"""Training: labels and images -> dataset -> model bundle -> evaluation.

A separate job; the engine never imports it.
"""
