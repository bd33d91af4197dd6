"""What executes artifacts on this host: one adapter per runtime, and the child process they run in."""
