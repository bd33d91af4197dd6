"""The program that runs on the device: it gets a model, measures it and leaves nothing behind.

It arrives on standard input together with the files, runs under any Python from 3.9 with numpy and a runtime, and
answers in lines of `EDGE1 {json}` on standard output; everything else there is noise and is ignored. Each model, runtime
and number of threads is loaded in a process of its own, and all of them are timed in blocks that take turns, so that
heat and other programs hit all alike. Around every block the board is asked whether it was throttled; a block that was
counts for nothing, and is repeated after a pause. To make an environment it runs `installer.py`, which then comes along.
"""
