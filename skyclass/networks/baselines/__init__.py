"""The networks that Zhao et al. 2023 compare IICnet with, table 3."""
