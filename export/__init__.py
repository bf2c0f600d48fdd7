"""From a checkpoint to a bundle: `python -m export`. Imports the library, never the reverse."""
