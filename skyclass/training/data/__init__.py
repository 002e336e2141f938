"""Labels, selections, cutouts and splits: what a training set is made of."""
