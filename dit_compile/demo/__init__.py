"""The demo: a small trained FLUX transformer, shipped with the package, drawn with and without the cache."""
