"""Models: bundles, preprocessing, photometry, compilation and classification."""
