"""What a command does, one module each, without the command line: build, quantize, calibrate, inspect, init, replay."""
