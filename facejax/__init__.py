"""facejax: track, relight and learn 3D faces from ordinary video, in JAX."""

__version__ = "0.1.0"
