"""A library that cannot be imported."""

raise OSError("libmissing.so.1: cannot open shared object file")
