"""Making a torch model smaller before it is exported: every method SourceModel → SourceModel, so that they compose."""
