"""Where a registry lies: files at a URL, read and written. A store knows bytes and paths, never what they mean.

`base` says what every store does, `folder`, `bucket` and `web` do it for a folder, for S3, GCS and whatever else fsspec can
write, and for plain HTTP; `opening` chooses by the URL.
"""
