"""The student catalogue: small mobile-first networks written for this project, with width and depth knobs.

`catalogue` is data and loads no torch; each family's module is imported when one of its networks is built.
Every network exports to every format, with a symbolic batch axis.
"""
