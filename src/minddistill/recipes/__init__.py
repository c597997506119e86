"""One file per command; the only package that knows the others."""
