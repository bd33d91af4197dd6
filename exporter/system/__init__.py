"""The host under the tool: files, processes, isolation, URLs, and the user's own code."""
