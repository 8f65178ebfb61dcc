"""From files to examples: sources, splits, sampling, encoding, batches."""
