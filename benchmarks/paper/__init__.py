"""The study of Zhao et al. 2023 (RAA 23, 085010) again, on a SIMULATED sky: `python -m benchmarks.paper`."""
