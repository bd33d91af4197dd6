"""What others may know and check about a build: who signed it, what it was made from, what it consists of.

Signatures, provenance, the bill of materials and the model card. Everything in them was measured or recorded by the build;
none of these modules changes a model.
"""
