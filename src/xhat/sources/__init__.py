"""Sources of data that a config names: `fields(darcy.npy)` and others, a file each."""
