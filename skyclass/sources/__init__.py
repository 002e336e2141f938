"""Input tables: AllWISE partitions, HATS catalogues and users' tables of positions, in one schema."""
