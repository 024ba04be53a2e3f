"""dexml: extreme multi-label retrieval with dual encoders. Public names live in the modules; nothing runs at import."""

__version__ = "0.1.0"
