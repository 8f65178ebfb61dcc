"""From rows to answers, scores and their intervals."""
