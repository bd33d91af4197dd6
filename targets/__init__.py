"""Where a model goes: what each target can run, what it wants, and how it packs what it gets."""
