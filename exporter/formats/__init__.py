"""One producer per file format: each turns a settled model into one kind of file."""
