"""What an answer can be: classes, numbers, choices, likelihoods, spans, tags, texts."""
