"""One file per system that can be trained."""
