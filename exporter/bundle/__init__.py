"""What lies in a bundle: manifest, contract, golden vectors, device records, and the names that all of them obey."""
