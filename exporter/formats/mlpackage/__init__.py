"""`.mlpackage`: from the captured program to a Core ML ML Program with compressed weights."""
