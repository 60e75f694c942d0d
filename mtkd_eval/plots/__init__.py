"""Pictures of results, from files on disk: comparison sheets, error maps, curves, scatter plots, gains."""
